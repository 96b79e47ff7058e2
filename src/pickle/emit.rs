//! A writer of pickles, protocol 2: what `torch.save` uses and every `torch.load` reads.

use std::collections::HashMap;

/// Writes one protocol-2 pickle, opcode by opcode. Globals are memoised, as Python's pickler does.
#[derive(Debug)]
pub struct Emitter {
    out: Vec<u8>,
    globals: HashMap<(&'static str, &'static str), u32>,
    memo: u32,
}

impl Default for Emitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Emitter {
    /// A pickle with nothing but its protocol header.
    #[must_use]
    pub fn new() -> Self {
        Emitter { out: vec![0x80, 2], globals: HashMap::new(), memo: 0 }
    }

    fn op(&mut self, op: u8) -> &mut Self {
        self.out.push(op);
        self
    }

    /// Opens a group that [`Emitter::tuple`] or [`Emitter::set_items`] closes.
    pub fn mark(&mut self) -> &mut Self {
        self.op(b'(')
    }

    /// An opcode that refers to a memo entry: `short` with one byte, `long` with four.
    fn memo_op(&mut self, short: u8, long: u8, at: u32) {
        match u8::try_from(at) {
            Ok(at) => self.out.extend([short, at]),
            Err(_) => {
                self.out.push(long);
                self.out.extend_from_slice(&at.to_le_bytes());
            }
        }
    }

    /// The class or function `module.name`.
    pub fn global(&mut self, module: &'static str, name: &'static str) -> &mut Self {
        if let Some(&at) = self.globals.get(&(module, name)) {
            self.memo_op(b'h', b'j', at);
            return self;
        }
        self.out.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
        self.memo_op(b'q', b'r', self.memo);
        self.globals.insert((module, name), self.memo);
        self.memo += 1;
        self
    }

    /// A `str`; at most 4 GiB of it.
    pub fn str(&mut self, text: &str) -> &mut Self {
        let length = text.len() as u32;
        self.op(b'X').out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(&text.as_bytes()[..length as usize]);
        self
    }

    /// A non-negative `int`.
    pub fn int(&mut self, value: u64) -> &mut Self {
        if let Ok(value) = u8::try_from(value) {
            return self.op(b'K').op(value);
        }
        if let Ok(value) = u16::try_from(value) {
            self.op(b'M').out.extend_from_slice(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.op(b'J').out.extend_from_slice(&value.to_le_bytes());
        } else {
            let bytes = value.to_le_bytes();
            // LONG1 is signed: keep a zero byte on top of a set high bit, and no more bytes than needed.
            let used = 8 - value.leading_zeros() as usize / 8;
            let signed = used + usize::from(bytes[used - 1] & 0x80 != 0);
            self.op(0x8a).op(signed as u8);
            self.out.extend_from_slice(&bytes[..used]);
            if signed > used {
                self.out.push(0);
            }
        }
        self
    }

    /// `False`.
    pub fn false_(&mut self) -> &mut Self {
        self.op(0x89)
    }

    /// The empty tuple.
    pub fn empty_tuple(&mut self) -> &mut Self {
        self.op(b')')
    }

    /// A tuple of all since the last mark.
    pub fn tuple(&mut self) -> &mut Self {
        self.op(b't')
    }

    /// Calls the global before the last value with that value, a tuple.
    pub fn reduce(&mut self) -> &mut Self {
        self.op(b'R')
    }

    /// Sets the keys and values since the last mark on the dictionary before it.
    pub fn set_items(&mut self) -> &mut Self {
        self.op(b'u')
    }

    /// An empty dictionary.
    pub fn empty_dict(&mut self) -> &mut Self {
        self.op(b'}')
    }

    /// Sets the last two values, a key and its value, on the dictionary before them.
    pub fn set_item(&mut self) -> &mut Self {
        self.op(b's')
    }

    /// The object of which the last value is the persistent id.
    pub fn persistent(&mut self) -> &mut Self {
        self.op(b'Q')
    }

    /// Ends the pickle and returns its bytes.
    #[must_use]
    pub fn stop(mut self) -> Vec<u8> {
        self.op(b'.');
        self.out
    }
}
