//! The commonest kind of block, `x + attn(norm1(x))`, then `x + mlp(norm2(x))`: forwards and backwards on slices.

use super::super::blocks::Plain;
use super::super::config::{Activation, Norm as NormConfig, NormKind};
use super::super::kernels::gemm::{View, product};
use super::super::kernels::math as kernels;
use super::super::keys::Param;
use super::super::layers::Norm;
use super::linear::Folded;
use super::{Room, math};

type Result<T> = candle_core::Result<T>;

/// Layers of a block.
pub(super) const LAYERS: usize = 4;

/// A block as one step runs it. Shapes: `[rows, width]`, where the rows are the tokens of one image after the other.
#[derive(Debug)]
pub(super) struct Block<'v> {
    norm1: Normalise<'v>,
    qkv: Folded<'v>,
    heads: usize,
    proj: Folded<'v>,
    gamma1: Option<&'v [f32]>,
    norm2: Normalise<'v>,
    fc1: Folded<'v>,
    activation: Activation,
    fc2: Folded<'v>,
    gamma2: Option<&'v [f32]>,
}

/// What the backward pass needs of the forward one. The rest is computed anew: it is little work.
#[derive(Debug)]
pub(super) struct Kept {
    x: Vec<f32>,
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    /// Between attention and MLP.
    middle: Vec<f32>,
    /// What the activation is of.
    hidden: Vec<f32>,
}

impl Kept {
    pub(super) fn give(self, room: &mut Room) {
        room.give(self.x);
        if let Some(inner) = self.inner {
            inner.give(room);
        }
    }
}

impl<'v> Block<'v> {
    /// The block with these numbers for what is learned; sums go to the `buffers` that are needed.
    pub(super) fn new(block: Plain<'v, '_>, values: &'v [f32], buffers: &mut [Vec<f32>; LAYERS]) -> Result<Block<'v>> {
        let [qkv, proj, fc1, fc2] = buffers;
        Ok(Block {
            norm1: Normalise::new(block.norm1, values)?,
            qkv: Folded::new(block.qkv, values, qkv)?,
            heads: block.heads,
            proj: Folded::new(block.proj, values, proj)?,
            gamma1: block.ls1.map(Param::slice).transpose()?,
            norm2: Normalise::new(block.norm2, values)?,
            fc1: Folded::new(block.fc1, values, fc1)?,
            activation: block.activation,
            fc2: Folded::new(block.fc2, values, fc2)?,
            gamma2: block.ls2.map(Param::slice).transpose()?,
        })
    }

    /// The buffers, for the next step, where they were needed.
    pub(super) fn give_back(self, buffers: &mut [Vec<f32>; LAYERS]) {
        for (buffer, layer) in buffers.iter_mut().zip([self.qkv, self.proj, self.fc1, self.fc2]) {
            let sum = layer.into_buffer();
            if !sum.is_empty() {
                *buffer = sum;
            }
        }
    }

    pub(super) fn learns(&self) -> bool {
        [&self.qkv, &self.proj, &self.fc1, &self.fc2].into_iter().any(Folded::learns)
            || self.norm1.learns()
            || self.norm2.learns()
    }

    /// What comes out, and what the backward pass needs: all of it, or with `again` the input alone.
    pub(super) fn forward(&self, x: Vec<f32>, tokens: usize, again: bool, room: &mut Room) -> (Vec<f32>, Kept) {
        let (inner, y) = self.run(&x, tokens, room);
        if again {
            inner.give(room);
            return (y, Kept { x, inner: None });
        }
        (y, Kept { x, inner: Some(inner) })
    }

    fn run(&self, x: &[f32], tokens: usize, room: &mut Room) -> (Inner, Vec<f32>) {
        let normed = self.norm1.forward(x, room);
        let qkv = self.qkv.forward(&normed, room);
        room.give(normed);
        let mixed = self.attention(&qkv, tokens, room);
        let mut middle = self.proj.forward(&mixed, room);
        add(x, &mut middle, self.gamma1, room);
        let normed = self.norm2.forward(&middle, room);
        let hidden = self.fc1.forward(&normed, room);
        room.give(normed);
        let mut active = room.take(hidden.len());
        active.copy_from_slice(&hidden);
        kernels::bias_activation(room.arch, &mut active, None, Some(self.activation));
        let mut y = self.fc2.forward(&active, room);
        room.give(active);
        add(&middle, &mut y, self.gamma2, room);
        (Inner { qkv, mixed, middle, hidden }, y)
    }

    /// The gradient of the input from that of the output, `g`, if it is `wanted`; those of what is learned are added to `gradients`.
    pub(super) fn backward(
        &self,
        kept: Kept,
        g: Vec<f32>,
        tokens: usize,
        wanted: bool,
        room: &mut Room,
        gradients: &mut [f64],
    ) -> Option<Vec<f32>> {
        let Kept { x, inner } = kept;
        let Inner { qkv, mixed, middle, mut hidden } = inner.unwrap_or_else(|| {
            let (inner, y) = self.run(&x, tokens, room);
            room.give(y);
            inner
        });

        // y = middle + gamma2 fc2(activation(fc1(norm2(middle))))
        let scaled = scale(&g, self.gamma2, room);
        let of_y = scaled.as_deref().unwrap_or(&g);
        let mut active = room.take(hidden.len());
        math::activation(room.arch, &mut hidden, &mut active, self.activation);
        self.fc2.gradients(&active, of_y, room, gradients);
        let slope = hidden;
        room.give(active);
        let attention = wanted || [&self.qkv, &self.proj].into_iter().any(Folded::learns) || self.norm1.learns();
        if !attention && !self.fc1.learns() && !self.norm2.learns() {
            room.give_all([Some(slope), Some(g), Some(x), Some(qkv), Some(mixed), Some(middle), scaled]);
            return None;
        }
        let mut of_hidden = self.fc2.backward(of_y, room);
        kernels::multiply(room.arch, &mut of_hidden, &slope);
        room.give_all([Some(slope), scaled]);
        if self.fc1.learns() {
            let normed = self.norm2.forward(&middle, room);
            self.fc1.gradients(&normed, &of_hidden, room, gradients);
            room.give(normed);
        }
        let mut of_middle = self.fc1.backward(&of_hidden, room);
        room.give(of_hidden);
        self.norm2.backward(&mut of_middle, &middle, room, gradients);
        kernels::add_scaled(room.arch, &mut of_middle, &g, None);
        room.give_all([Some(g), Some(middle)]);

        // middle = x + gamma1 proj(attention(qkv(norm1(x))))
        let scaled = scale(&of_middle, self.gamma1, room);
        let of_y = scaled.as_deref().unwrap_or(&of_middle);
        self.proj.gradients(&mixed, of_y, room, gradients);
        room.give(mixed);
        let wanted = wanted || self.norm1.learns();
        if !wanted && !self.qkv.learns() {
            room.give_all([Some(qkv), Some(x), Some(of_middle), scaled]);
            return None;
        }
        let of_mixed = self.proj.backward(of_y, room);
        room.give_all([scaled]);
        let of_qkv = self.attention_backward(&qkv, &of_mixed, tokens, room);
        room.give_all([Some(of_mixed), Some(qkv)]);
        if self.qkv.learns() {
            let normed = self.norm1.forward(&x, room);
            self.qkv.gradients(&normed, &of_qkv, room, gradients);
            room.give(normed);
        }
        let mut of_x = None;
        if wanted {
            let mut through = self.qkv.backward(&of_qkv, room);
            self.norm1.backward(&mut through, &x, room, gradients);
            kernels::add_scaled(room.arch, &mut through, &of_middle, None);
            of_x = Some(through);
        }
        room.give_all([of_qkv, of_middle, x].map(Some));
        of_x
    }

    /// `softmax(q k^T / sqrt(head)) v` of each image and head: `[rows, 3 * width]` to `[rows, width]`.
    fn attention(&self, qkv: &[f32], tokens: usize, room: &mut Room) -> Vec<f32> {
        let width = self.qkv.outputs() / 3;
        let head = width / self.heads.max(1);
        let mut mixed = room.take(qkv.len() / 3);
        let (mut weights, mut sums) = (room.take(tokens * tokens), room.take(tokens));
        for (image, first) in (0..qkv.len() / 3).step_by((tokens * width).max(1)).enumerate() {
            for n in 0..self.heads {
                let heads = Heads::new(qkv, image * tokens, n * head, width);
                heads.weights(&mut weights, &mut sums, tokens, head, room);
                let out = &mut mixed[first + n * head..];
                product(out, width, (tokens, head, tokens), View::rows(&weights, tokens), heads.v, 1);
            }
        }
        room.give_all([Some(weights), Some(sums)]);
        mixed
    }

    /// The gradient of `qkv` from that of [`Block::attention`].
    fn attention_backward(&self, qkv: &[f32], g: &[f32], tokens: usize, room: &mut Room) -> Vec<f32> {
        let width = self.qkv.outputs() / 3;
        let head = width / self.heads.max(1);
        let scale = (head as f32).powf(-0.5);
        let mut of_qkv = room.take(qkv.len());
        let (mut weights, mut sums) = (room.take(tokens * tokens), room.take(tokens));
        let mut scores = room.take(tokens * tokens);
        let square = (tokens, tokens, head);
        let tall = (tokens, head, tokens);
        for image in 0..qkv.len() / (3 * tokens * width).max(1) {
            for n in 0..self.heads {
                let heads = Heads::new(qkv, image * tokens, n * head, width);
                heads.weights(&mut weights, &mut sums, tokens, head, room);
                let g = View { data: &g[image * tokens * width + n * head..], row: width, column: 1 };
                // That of the weights, `g v^T`, then of the scores.
                product(&mut scores, tokens, square, g, heads.v.turned(), 1);
                math::softmax(room.arch, &mut scores, &weights, tokens, scale);
                let first = image * tokens * 3 * width + n * head;
                let (weights, scores) = (View::rows(&weights, tokens), View::rows(&scores, tokens));
                product(&mut of_qkv[first..], 3 * width, tall, scores, heads.k, 1);
                product(&mut of_qkv[first + width..], 3 * width, tall, scores.turned(), heads.q, 1);
                product(&mut of_qkv[first + 2 * width..], 3 * width, tall, weights.turned(), g, 1);
            }
        }
        room.give_all([weights, sums, scores].map(Some));
        of_qkv
    }
}

/// One head of one image in `[rows, 3 * width]`.
struct Heads<'q> {
    q: View<'q>,
    k: View<'q>,
    v: View<'q>,
}

impl<'q> Heads<'q> {
    fn new(qkv: &'q [f32], row: usize, column: usize, width: usize) -> Self {
        let part = |n: usize| View { data: &qkv[row * 3 * width + n * width + column..], row: 3 * width, column: 1 };
        Heads { q: part(0), k: part(1), v: part(2) }
    }

    /// `softmax(q k^T / sqrt(head))`.
    fn weights(&self, weights: &mut [f32], sums: &mut [f32], tokens: usize, head: usize, room: &Room) {
        product(weights, tokens, (tokens, tokens, head), self.q, self.k.turned(), 1);
        kernels::softmax_unscaled(room.arch, weights, tokens, (head as f32).powf(-0.5), sums);
        math::divide_rows(room.arch, weights, tokens, sums);
    }
}

impl Inner {
    fn give(self, room: &mut Room) {
        room.give_all([self.qkv, self.mixed, self.middle, self.hidden].map(Some));
    }
}

/// `y = x + gamma y`.
fn add(x: &[f32], y: &mut [f32], gamma: Option<&[f32]>, room: &Room) {
    if let Some(gamma) = gamma {
        math::scale_rows(room.arch, y, gamma);
    }
    kernels::add_scaled(room.arch, y, x, None);
}

/// `gamma g`, if there is a `gamma`.
fn scale(g: &[f32], gamma: Option<&[f32]>, room: &mut Room) -> Option<Vec<f32>> {
    let mut scaled = room.take(gamma.map(|_| g.len())?);
    scaled.copy_from_slice(g);
    math::scale_rows(room.arch, &mut scaled, gamma?);
    Some(scaled)
}

/// A normalisation as one step runs it.
#[derive(Debug)]
struct Normalise<'v> {
    norm: NormConfig,
    weight: &'v [f32],
    /// Empty for RMSNorm.
    bias: &'v [f32],
    /// Where the numbers of weight and bias are among all that are learned, if they are.
    learned: [Option<usize>; 2],
}

impl<'v> Normalise<'v> {
    fn new(norm: &'v Norm<'_>, values: &'v [f32]) -> Result<Self> {
        let read = |param: &'v Param<'_>| match param.learned() {
            Some(variable) => Ok((&values[variable.range()], Some(variable.range().start))),
            None => Ok::<_, candle_core::Error>((param.slice()?, None)),
        };
        let (weight, of_weight) = read(&norm.weight)?;
        let (bias, of_bias) = norm.bias.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Normalise { norm: norm.norm, weight, bias, learned: [of_weight, of_bias] })
    }

    fn learns(&self) -> bool {
        self.learned.iter().any(Option::is_some)
    }

    fn forward(&self, x: &[f32], room: &mut Room) -> Vec<f32> {
        let (mut y, eps) = (room.take(x.len()), self.norm.eps as f32);
        match self.norm.kind {
            NormKind::LayerNorm => kernels::layer_norm(room.arch, x, &mut y, self.weight, self.bias, eps),
            NormKind::RmsNorm => kernels::rms_norm(room.arch, x, &mut y, self.weight, eps),
        }
        y
    }

    /// The gradient of `x` in place of that of its normalisation.
    fn backward(&self, g: &mut [f32], x: &[f32], room: &mut Room, gradients: &mut [f64]) {
        if !self.learns() {
            return math::norm(room.arch, g, x, self.weight, self.norm, None);
        }
        let (mut weight, mut bias) = (vec![0.0; self.weight.len()], vec![0.0; self.bias.len()]);
        let of = math::OfNorm { weight: &mut weight, bias: &mut bias };
        math::norm(room.arch, g, x, self.weight, self.norm, Some(of));
        for (first, of) in self.learned.iter().zip([weight, bias]) {
            let Some(first) = first else { continue };
            gradients[*first..].iter_mut().zip(of).for_each(|(sum, x)| *sum += f64::from(x));
        }
    }
}
