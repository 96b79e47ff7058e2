//! The operations as kernels of this crate: float32 on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, InplaceOp2, Layout, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;

use super::super::config::{Activation, Norm, NormKind};
use super::super::keys::{Param, Scale};
use super::gemm::{View, product};
use super::{Ops, Precision, math};

type Result<T> = candle_core::Result<T>;

/// Rows of queries whose scores are computed at a time.
const QUERIES: usize = 256;

/// The elements of a tensor that lies in one piece.
fn elements<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((first, end))) => Ok(&values[first..end]),
        _ => bail!("a kernel needs contiguous float32"),
    }
}

fn elements_mut<'s>(storage: &'s mut CpuStorage, layout: &Layout) -> Result<&'s mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((first, end))) => Ok(&mut values[first..end]),
        _ => bail!("a kernel needs contiguous float32"),
    }
}

/// Calls `work` with pieces of `values`, of whole rows, on all threads of the pool if there is more than one to share the work.
fn by_rows(values: &mut [f32], width: usize, threads: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let width = width.max(1);
    let rows = values.len() / width;
    if threads <= 1 || rows < 2 * threads {
        return work(0, values);
    }
    let step = rows.div_ceil(4 * threads);
    values.par_chunks_mut(step * width).enumerate().for_each(|(n, piece)| work(n * step, piece));
}

struct Linear<'a> {
    weight: &'a [f32],
    outputs: usize,
    inputs: usize,
    branches: Vec<(&'a [f32], f32)>,
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    ops: Ops,
}

impl Linear<'_> {
    /// `out = x W^T`.
    fn product(&self, out: &mut [f32], x: &[f32], weight: &[f32]) {
        let (rows, threads) = (x.len() / self.inputs.max(1), self.ops.threads);
        let weight = View::transposed(weight, self.inputs);
        product(out, self.outputs, (rows, self.outputs, self.inputs), View::rows(x, self.inputs), weight, threads);
    }
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        let mut shape = layout.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.inputs => *last = self.outputs,
            _ => bail!("{shape:?} does not go through a layer of {} inputs", self.inputs),
        }
        let arch = Arch::new();
        let mut y = vec![0.0; shape.iter().product()];
        self.product(&mut y, x, self.weight);
        for (aux, lambda) in &self.branches {
            let mut branch = vec![0.0; y.len()];
            self.product(&mut branch, x, aux);
            y.iter_mut().zip(&branch).for_each(|(y, b)| *y += lambda * b);
        }
        if self.bias.is_some() || self.activation.is_some() || self.ops.precision != Precision::F32 {
            by_rows(&mut y, self.outputs, self.ops.threads, |_, rows| {
                match (self.ops.precision, self.activation) {
                    // A layer and a function behind it are two operations: each rounds.
                    (Precision::F16 | Precision::BF16, Some(_)) => {
                        math::bias_activation(arch, rows, self.bias, None);
                        self.ops.precision.round(rows);
                        math::bias_activation(arch, rows, None, self.activation);
                    }
                    _ => math::bias_activation(arch, rows, self.bias, self.activation),
                }
                self.ops.precision.round(rows);
            });
        }
        Ok((CpuStorage::F32(y), shape.into()))
    }
}

pub(super) fn linear(
    ops: Ops,
    x: &Tensor,
    weight: &Param<'_>,
    branches: &[(Param<'_>, Scale)],
    bias: Option<&Param<'_>>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let &[outputs, inputs] = weight.shape() else { bail!("a weight is a matrix") };
    let branches = branches.iter().map(|(aux, lambda)| Ok((aux.slice()?, lambda.value()?))).collect::<Result<_>>()?;
    let bias = bias.map(Param::slice).transpose()?;
    let op = Linear { weight: weight.slice()?, outputs, inputs, branches, bias, activation, ops };
    x.contiguous()?.apply_op1_no_bwd(&op)
}

struct Elementwise {
    activation: Activation,
    ops: Ops,
}

impl CustomOp1 for Elementwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = elements(storage, layout)?.to_vec();
        let width = layout.dims().last().copied().unwrap_or(1);
        by_rows(&mut y, width, self.ops.threads, |_, rows| {
            math::bias_activation(Arch::new(), rows, None, Some(self.activation));
            self.ops.precision.round(rows);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

pub(super) fn activation(ops: Ops, x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Elementwise { activation, ops })
}

struct Normalise<'a> {
    norm: Norm,
    weight: &'a [f32],
    bias: &'a [f32],
    ops: Ops,
}

impl CustomOp1 for Normalise<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width, eps) = (elements(storage, layout)?, self.weight.len(), self.norm.eps as f32);
        if layout.dims().last() != Some(&width) {
            bail!("{:?} does not go through a normalisation of {width} features", layout.dims());
        }
        let mut y = vec![0.0; x.len()];
        by_rows(&mut y, width, self.ops.threads, |first, rows| {
            let x = &x[first * width..][..rows.len()];
            match self.norm.kind {
                NormKind::LayerNorm => math::layer_norm(Arch::new(), x, rows, self.weight, self.bias, eps),
                NormKind::RmsNorm => math::rms_norm(Arch::new(), x, rows, self.weight, eps),
            }
            self.ops.precision.round(rows);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

pub(super) fn norm(ops: Ops, x: &Tensor, norm: Norm, weight: &Param<'_>, bias: Option<&Param<'_>>) -> Result<Tensor> {
    let bias = bias.map(Param::slice).transpose()?.unwrap_or_default();
    x.contiguous()?.apply_op1_no_bwd(&Normalise { norm, weight: weight.slice()?, bias, ops })
}

/// One head of `[batch, heads, tokens, head]`, anywhere in its storage.
struct Heads<'a> {
    data: &'a [f32],
    strides: [usize; 4],
}

impl<'a> Heads<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        match (storage, layout.stride()) {
            (CpuStorage::F32(values), &[batch, head, token, 1]) => {
                Ok(Heads { data: &values[layout.start_offset()..], strides: [batch, head, token, 1] })
            }
            _ => bail!("attention needs float32 heads whose features lie together"),
        }
    }

    /// The `[tokens, head]` of one head, from its token `first` on.
    fn of(&self, batch: usize, head: usize, first: usize) -> View<'a> {
        let [b, h, row, column] = self.strides;
        View { data: &self.data[batch * b + head * h + first * row..], row, column }
    }
}

struct Attention {
    ops: Ops,
}

impl Attention {
    fn head(
        &self,
        out: &mut [f32],
        (q, k, v): (&Heads<'_>, &Heads<'_>, &Heads<'_>),
        at: (usize, usize),
        dims: [usize; 4],
    ) {
        let [queries, keys, width, values] = dims;
        let (arch, scale) = (Arch::new(), (width as f32).powf(-0.5));
        let mut scores = vec![0.0; queries.min(QUERIES) * keys];
        let mut sums = vec![0.0; queries.min(QUERIES)];
        let (k, v) = (k.of(at.0, at.1, 0), v.of(at.0, at.1, 0));
        let k = View { data: k.data, row: k.column, column: k.row };
        for (n, out) in out.chunks_mut(QUERIES * values).enumerate() {
            let rows = out.len() / values;
            let (scores, sums) = (&mut scores[..rows * keys], &mut sums[..rows]);
            product(scores, keys, (rows, keys, width), q.of(at.0, at.1, n * QUERIES), k, 1);
            math::softmax_unscaled(arch, scores, keys, scale, sums);
            product(out, values, (rows, values, keys), View::rows(scores, keys), v, 1);
            for (row, sum) in out.chunks_exact_mut(values).zip(sums) {
                let scale = 1.0 / *sum;
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        self.ops.precision.round(out);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, heads, queries, width) = q_layout.shape().dims4()?;
        let (_, _, keys, values) = v_layout.shape().dims4()?;
        if k_layout.dims() != [batch, heads, keys, width] || v_layout.dims()[..2] != [batch, heads] {
            bail!("queries {:?}, keys {:?}, values {:?}", q_layout.dims(), k_layout.dims(), v_layout.dims());
        }
        let (q, k, v) = (Heads::new(q, q_layout)?, Heads::new(k, k_layout)?, Heads::new(v, v_layout)?);
        let (dims, size) = ([queries, keys, width, values], (queries * values).max(1));
        let mut out = vec![0.0; batch * heads * queries * values];
        let one = |(n, out): (usize, &mut [f32])| self.head(out, (&q, &k, &v), (n / heads, n % heads), dims);
        if self.ops.threads > 1 {
            out.par_chunks_mut(size).enumerate().for_each(one);
        } else {
            out.chunks_mut(size).enumerate().for_each(one);
        }
        Ok((CpuStorage::F32(out), (batch, heads, queries, values).into()))
    }
}

pub(super) fn attention(ops: Ops, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let together = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    together(q)?.apply_op3_no_bwd(&together(k)?, &together(v)?, &Attention { ops })
}

struct AddScaled<'a> {
    gamma: Option<&'a [f32]>,
    ops: Ops,
}

impl InplaceOp2 for AddScaled<'_> {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        if x_layout.dims() != y_layout.dims() {
            bail!("{:?} cannot be added to {:?}", y_layout.dims(), x_layout.dims());
        }
        let width = x_layout.dims().last().copied().unwrap_or(1);
        let (x, y) = (elements_mut(x, x_layout)?, elements(y, y_layout)?);
        by_rows(x, width, self.ops.threads, |first, rows| {
            let y = &y[first * width..][..rows.len()];
            match (self.ops.precision, self.gamma) {
                // Scaling and adding are two operations: each rounds.
                (Precision::F16 | Precision::BF16, Some(_)) => {
                    let mut scaled = vec![0.0; y.len()];
                    math::add_scaled(Arch::new(), &mut scaled, y, self.gamma);
                    self.ops.precision.round(&mut scaled);
                    math::add_scaled(Arch::new(), rows, &scaled, None);
                }
                _ => math::add_scaled(Arch::new(), rows, y, self.gamma),
            }
            self.ops.precision.round(rows);
        });
        Ok(())
    }
}

pub(super) fn residual(ops: Ops, x: Tensor, y: &Tensor, gamma: Option<&Param<'_>>) -> Result<Tensor> {
    let gamma = gamma.map(Param::slice).transpose()?;
    x.inplace_op2(&y.contiguous()?, &AddScaled { gamma, ops })?;
    Ok(x)
}

struct Multiply {
    ops: Ops,
}

impl InplaceOp2 for Multiply {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        if x_layout.dims() != y_layout.dims() {
            bail!("{:?} cannot be multiplied with {:?}", y_layout.dims(), x_layout.dims());
        }
        let width = x_layout.dims().last().copied().unwrap_or(1);
        let (x, y) = (elements_mut(x, x_layout)?, elements(y, y_layout)?);
        by_rows(x, width, self.ops.threads, |first, rows| {
            math::multiply(Arch::new(), rows, &y[first * width..][..rows.len()]);
            self.ops.precision.round(rows);
        });
        Ok(())
    }
}

pub(super) fn multiply(ops: Ops, x: Tensor, y: &Tensor) -> Result<Tensor> {
    x.inplace_op2(&y.contiguous()?, &Multiply { ops })?;
    Ok(x)
}
