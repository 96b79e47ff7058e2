//! Memory: how much of it one file takes, and how much it may take.

/// The largest number of bytes of memory that what is read of one file takes: its pickles and their values, the objects
/// made of them, its directories and headers, and what is kept of them.
pub const MAX_VALUE_BYTES: usize = 208 << 20;

/// Memory taken for one checkpoint, of however many pickles and files it consists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    /// Bytes in use.
    taken: usize,
    /// The most that was given back at once. Small pieces find room in it, but it is not sure that a table does, nor that an
    /// allocator hands it back to the system.
    freed: usize,
}

/// There is no room for what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Budget {
    /// Bytes in use.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Whether there is room for that many bytes more at once.
    ///
    /// # Errors
    /// [`Full`] if not.
    pub(crate) fn room_for(&self, bytes: usize) -> Result<(), Full> {
        let all = self.taken.saturating_add(self.freed).saturating_add(bytes);
        if all > MAX_VALUE_BYTES { Err(Full) } else { Ok(()) }
    }

    /// Accounts for bytes in small pieces that are about to be used.
    ///
    /// # Errors
    /// [`Full`] if there are not so many.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Full> {
        let taken = self.taken.saturating_add(bytes);
        if taken > MAX_VALUE_BYTES {
            return Err(Full);
        }
        self.taken = taken;
        Ok(())
    }

    /// Accounts for bytes of a vector or table that is about to be used.
    ///
    /// # Errors
    /// [`Full`] if there are not so many.
    pub(crate) fn take_table(&mut self, bytes: usize) -> Result<(), Full> {
        self.room_for(bytes)?;
        self.taken += bytes;
        Ok(())
    }

    /// Accounts for bytes that are in use no longer.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_sub(bytes);
        self.freed = self.freed.max(bytes);
    }

    /// Makes room in `items` for `more` of them. It grows by a quarter, not to twice its size: what is reserved is memory
    /// too.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for them.
    pub(crate) fn reserve<T>(&mut self, items: &mut Vec<T>, more: usize) -> Result<(), Full> {
        if items.capacity() - items.len() < more {
            let before = items.capacity();
            let count = more.max(items.len() / 4).max(4);
            self.take_table((items.len() + count - before).saturating_mul(size_of::<T>()))?;
            items.reserve_exact(count);
        }
        Ok(())
    }

    /// Appends to `items`, as [`Budget::reserve`] makes room.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for it.
    pub(crate) fn push<T>(&mut self, items: &mut Vec<T>, item: T) -> Result<(), Full> {
        self.reserve(items, 1)?;
        items.push(item);
        Ok(())
    }
}

/// Bytes of memory that an allocation of `bytes` takes.
pub(crate) fn allocated(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: usize = MAX_VALUE_BYTES / 2;

    #[test]
    fn what_is_taken_may_not_exceed_the_limit() {
        let mut budget = Budget::default();
        assert_eq!(budget.take(HALF), Ok(()));
        assert_eq!(budget.take(HALF + 1), Err(Full));
        assert_eq!(budget.take_table(HALF + 1), Err(Full));
        assert_eq!(budget.take(usize::MAX), Err(Full));
        assert_eq!(budget.take_table(usize::MAX), Err(Full));
        assert_eq!(budget.take_table(HALF), Ok(()));
        assert_eq!(budget.taken(), 2 * HALF);
        assert_eq!(budget.take(1), Err(Full));
    }

    #[test]
    fn small_pieces_use_what_was_given_back_and_tables_do_not() {
        let mut budget = Budget::default();
        for _ in 0..1000 {
            assert_eq!(budget.take(HALF), Ok(()));
            budget.give_back(HALF);
        }
        assert_eq!(budget.taken(), 0);
        assert_eq!(budget.take_table(HALF + 1), Err(Full));
        assert_eq!(budget.take_table(HALF), Ok(()));
        assert_eq!(budget.take_table(1), Err(Full));
        assert_eq!(budget.take(HALF), Ok(()));
    }

    #[test]
    fn a_vector_is_charged_for_what_it_reserves() {
        let (mut budget, mut items) = (Budget::default(), Vec::new());
        for n in 0..100_000u32 {
            budget.push(&mut items, n).unwrap();
        }
        assert_eq!(budget.taken(), items.capacity() * 4);
        assert!(items.capacity() <= 125_000);
    }
}
