//! Remainders by the polynomial of CRC-32, made while a fold has its elements in registers: on processors with AVX2 and carry-less
//! products of 256 bits, which are AMD's since Zen 3 and Intel's since Alder Lake. (Those with AVX-512 divide by wider products on their own.)

use super::simd::LINE;

/// Bytes that are congruent to all that were taken in.
pub(super) type Line = [[u8; LINE / 2]; 2];

const ZERO: Line = [[0; LINE / 2]; 2];

/// What is known of the lines that were taken in.
pub(super) struct Remainders {
    /// Of the sum of inputs, each a line behind the one before.
    pub(super) inputs: Line,
    /// Of the results.
    pub(super) folded: Line,
    /// For each term, the sum of it and those after it that is to be taken in with the next line.
    late: Vec<Line>,
}

impl Remainders {
    pub(super) fn new(terms: usize) -> Remainders {
        Remainders { inputs: ZERO, folded: ZERO, late: vec![ZERO; terms] }
    }

    /// What is known; from now on, as if nothing had been taken in.
    pub(super) fn take(&mut self) -> Remainders {
        std::mem::replace(self, Remainders::new(self.late.len()))
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use other::Products;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Products;

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use pulp::Arch;

    use super::Remainders;
    use crate::engine::simd::{Element, Fold, Folded};

    /// There are none.
    pub(in crate::engine) enum Products {}

    impl Products {
        pub(in crate::engine) fn of(_: Arch) -> Option<Products> {
            None
        }

        pub(in crate::engine) fn fold<E: Element>(&self, _: Fold<'_, E>, _: &mut Remainders) -> Folded {
            match *self {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256i, _mm256_clmulepi64_epi128, _mm256_set_epi64x, _mm256_xor_si256};

    use pulp::x86::V3;
    use pulp::{Arch, WithSimd};

    use super::{Line, Remainders, ZERO};
    use crate::engine::ahead::ahead;
    use crate::engine::simd::{Element, Fold, Folded, Lines};

    /// x^544 and x^480 modulo the polynomial, in reversed order of bits, a line of 512 bits being between two that are added.
    const KEYS: [i64; 2] = [0x0001_5444_2bd4, 0x0001_c6e4_1596];

    /// That the processor has such products.
    pub(in crate::engine) struct Products(V3);

    impl Products {
        /// If vectors are to be those of AVX2, and there are such instructions.
        pub(in crate::engine) fn of(arch: Arch) -> Option<Products> {
            match arch {
                Arch::V3(simd) if is_x86_feature_detected!("f16c") && is_x86_feature_detected!("vpclmulqdq") => {
                    Some(Products(simd))
                }
                _ => None,
            }
        }

        /// Folds a block, and takes in its lines.
        pub(in crate::engine) fn fold<E: Element>(&self, fold: Fold<'_, E>, lines: &mut Remainders) -> Folded {
            let Fold { source, first, more, out, lines: () } = fold;
            // SAFETY: the processor has these instructions: `self` says so.
            #[expect(unsafe_code, reason = "what a processor has is known when the program runs")]
            unsafe {
                run::<E::V3>(self.0, Fold { source, first, more, out, lines: () }, lines)
            }
        }
    }

    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,fma,lzcnt,popcnt,pclmulqdq,vpclmulqdq")]
    fn run<E: Element>(simd: V3, fold: Fold<'_, E>, into: &mut Remainders) -> Folded {
        let Fold { source, first, more, out, lines: () } = fold;
        let (late, more_late) = into.late.split_at_mut(1);
        let lines = Running {
            keys: _mm256_set_epi64x(KEYS[1], KEYS[0], KEYS[1], KEYS[0]),
            inputs: into.inputs.map(pulp::cast),
            folded: into.folded.map(pulp::cast),
            late: late.first().copied().unwrap_or(ZERO).map(pulp::cast),
            more: more_late,
            into: (&mut into.inputs, &mut into.folded, late),
        };
        Fold::<E, Running<'_>> { source, first, more, out, lines }.with_simd(simd)
    }

    /// Remainders in registers.
    struct Running<'r> {
        keys: __m256i,
        inputs: [__m256i; 2],
        folded: [__m256i; 2],
        /// Of the first term.
        late: [__m256i; 2],
        /// Of the others.
        more: &'r mut [Line],
        /// Where they go in the end.
        into: (&'r mut Line, &'r mut Line, &'r mut [Line]),
    }

    impl Lines for Running<'_> {
        #[inline(always)]
        fn take<'b>(&mut self, source: &[u8], first: &[u8], more: impl Iterator<Item = &'b [u8]>, out: &[u8]) {
            ahead(source);
            ahead(first);
            let sum = add(load(source), self.late);
            self.late = load(first);
            for (number, values) in more.enumerate() {
                ahead(values);
                let late = self.more[number].map(pulp::cast);
                match number.checked_sub(1) {
                    None => self.late = add(self.late, late),
                    Some(before) => self.more[before] = add(self.more[before].map(pulp::cast), late).map(pulp::cast),
                }
                self.more[number] = load(values).map(pulp::cast);
            }
            self.inputs = divide(self.inputs, self.keys, sum);
            self.folded = divide(self.folded, self.keys, load(out));
        }

        #[inline(always)]
        fn end(self) {
            let (inputs, folded, late) = self.into;
            *inputs = self.inputs.map(pulp::cast);
            *folded = self.folded.map(pulp::cast);
            late.fill(self.late.map(pulp::cast));
        }
    }

    #[inline(always)]
    fn load(line: &[u8]) -> [__m256i; 2] {
        line.as_chunks().0.first().map_or([pulp::cast([0u8; 32]); 2], |line: &[u8; 64]| pulp::cast(*line))
    }

    #[inline(always)]
    fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: only what is compiled for AVX2 calls this.
        #[expect(unsafe_code, reason = "the library of vectors has no such operation")]
        unsafe {
            [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])]
        }
    }

    /// What is congruent to `line` and, a line before it, `state`.
    #[inline(always)]
    fn divide(state: [__m256i; 2], keys: __m256i, line: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: only what is compiled for such products calls this.
        #[expect(unsafe_code, reason = "the library of vectors has no such operation")]
        let (low, high) = unsafe {
            (
                [_mm256_clmulepi64_epi128::<0x00>(state[0], keys), _mm256_clmulepi64_epi128::<0x00>(state[1], keys)],
                [_mm256_clmulepi64_epi128::<0x11>(state[0], keys), _mm256_clmulepi64_epi128::<0x11>(state[1], keys)],
            )
        };
        add(add(low, high), line)
    }
}
