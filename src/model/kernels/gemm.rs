//! Matrix products of slices: the one place of this room with `unsafe`, around the `gemm` crate.

/// A matrix in a slice: where its first element is, and how far apart rows and columns are.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct View<'a> {
    pub(in crate::model) data: &'a [f32],
    pub(in crate::model) row: usize,
    pub(in crate::model) column: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix with rows of `width`.
    pub(in crate::model) fn rows(data: &'a [f32], width: usize) -> Self {
        View { data, row: width, column: 1 }
    }

    /// The transpose of a row-major matrix with rows of `width`.
    pub(in crate::model) fn transposed(data: &'a [f32], width: usize) -> Self {
        View { data, row: 1, column: width }
    }

    /// Its transpose.
    pub(in crate::model) fn turned(self) -> Self {
        View { row: self.column, column: self.row, ..self }
    }

    /// Elements from the first to past the last of `rows` x `columns`.
    fn reach(&self, rows: usize, columns: usize) -> usize {
        if rows == 0 || columns == 0 { 0 } else { (rows - 1) * self.row + (columns - 1) * self.column + 1 }
    }
}

/// `out = a b`: `a` is `[m, k]`, `b` is `[k, n]`, and `out` has `m` rows of `n` that begin `stride` apart.
/// `threads` share the work.
///
/// # Panics
/// If a matrix reaches past the end of its slice.
pub(in crate::model) fn product(
    out: &mut [f32],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    threads: usize,
) {
    assert!(a.reach(m, k) <= a.data.len() && b.reach(k, n) <= b.data.len(), "a factor is too short");
    assert!(
        stride >= n && View { data: out, row: stride, column: 1 }.reach(m, n) <= out.len(),
        "no room for the product"
    );
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: all m x n elements of `out` and all elements of the factors lie in their slices, as was just asserted; the
    // rows of `out` do not overlap; the exclusive borrow of `out` keeps it apart from the factors.
    #[expect(unsafe_code, reason = "the crate takes pointers; see SAFETY above")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
