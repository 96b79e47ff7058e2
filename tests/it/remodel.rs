//! The numeric operations of a conversion: their values are those that timm, PyTorch and published formulas recorded.

use m2pt_surgery::remodel::{
    Channels, Collapse, Inflate, MAX_SIDE, Mode, Positions, RemodelError, Resampling, ast_positions, conv2d_to_conv3d,
    conv3d_to_conv2d, fold_batch_norm, input_channels, interpolate, patch_embedding, position_embedding, sincos_2d,
    sinusoid_table,
};
use serde_json::Value;

use crate::support::fixture;

/// The largest difference, over the largest magnitude of the recorded tensor; measured: 2.2e-7.
const TOLERANCE: f32 = 1e-6;

/// A recorded tensor.
struct Recorded {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Recorded {
    fn sides<const N: usize>(&self) -> [usize; N] {
        self.shape.clone().try_into().unwrap()
    }
}

/// A recorded case.
struct Case {
    arguments: Value,
    inputs: Vec<Recorded>,
    outputs: Vec<Recorded>,
}

impl Case {
    fn number(&self, name: &str) -> usize {
        self.arguments[name].as_u64().unwrap() as usize
    }

    fn pair(&self, name: &str) -> (usize, usize) {
        serde_json::from_value(self.arguments[name].clone()).unwrap()
    }

    fn text(&self, name: &str) -> &str {
        self.arguments[name].as_str().unwrap()
    }

    fn flag(&self, name: &str) -> bool {
        self.arguments[name].as_bool().unwrap()
    }

    fn how(&self) -> Resampling {
        let mode = if self.text("mode") == "bicubic" { Mode::Bicubic } else { Mode::Bilinear };
        Resampling { mode, antialias: self.flag("antialias") }
    }

    fn positions(&self) -> Positions {
        Positions { prefix: self.number("prefix"), grid: self.pair("grid"), width: self.inputs[0].shape[2] }
    }

    /// How far values are from the first output.
    fn distance(&self, ours: &[f32]) -> f32 {
        distance(ours, &self.outputs[0].values)
    }
}

/// The largest difference, over the largest magnitude.
fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The recorded cases of an operation; that many.
fn cases(operation: &str, count: usize) -> Vec<Case> {
    let bytes = std::fs::read(fixture("expected/remodel.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let listed: Vec<Value> = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let read = |names: &Value| -> Vec<Recorded> {
        let read = |name: &Value| {
            let tensor = tensors.tensor(name.as_str().unwrap()).unwrap();
            let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Recorded { shape: tensor.shape().to_vec(), values }
        };
        names.as_array().unwrap().iter().map(read).collect()
    };
    let cases: Vec<Case> = listed
        .into_iter()
        .filter(|case| case["operation"] == operation)
        .map(|case| Case { inputs: read(&case["inputs"]), outputs: read(&case["outputs"]), arguments: case })
        .collect();
    assert_eq!(cases.len(), count, "{operation}");
    cases
}

/// Holds an operation to all of its recorded cases.
fn hold(operation: &str, count: usize, run: impl Fn(&Case) -> Result<Vec<f32>, RemodelError>) {
    for case in cases(operation, count) {
        let distance = case.distance(&run(&case).unwrap());
        assert!(distance <= TOLERANCE, "{}: {distance:e}", case.arguments);
    }
}

#[test]
fn grids_are_resized_as_by_pytorch() {
    hold("interpolate", 33, |case| {
        let [channels, height, width] = case.inputs[0].sides();
        interpolate(&case.inputs[0].values, channels, (height, width), case.pair("to"), case.how())
    });
}

#[test]
fn columns_are_resized_like_rows() {
    // Of what PyTorch 2.15 makes of a single column with antialiasing, nothing can be recorded: one value, repeated.
    for case in cases("interpolate", 33).iter().filter(|case| case.inputs[0].shape[0] == 1) {
        let (values, length) = (&case.inputs[0].values, case.inputs[0].values.len());
        let row = interpolate(values, 1, (1, length), (1, 11), case.how());
        assert_eq!(interpolate(values, 1, (length, 1), (11, 1), case.how()), row);
    }
}

#[test]
fn positions_are_resampled_as_by_timm() {
    hold("positions", 11, |case| {
        position_embedding(&case.inputs[0].values, case.positions(), case.pair("to"), case.how())
    });
}

#[test]
fn positions_are_cut_and_stretched_as_by_ast() {
    hold("ast", 7, |case| ast_positions(&case.inputs[0].values, case.positions(), case.pair("to")));
}

#[test]
fn patch_embeddings_are_resampled_as_by_timm() {
    for case in cases("patch", 24) {
        let weight = &case.inputs[0];
        let ours = patch_embedding(&weight.values, weight.sides(), case.pair("to"), case.how()).unwrap();
        // timm's pseudo-inverse in float32 is up to 1.5e-6 away from the same in f64, ...
        let distance_to_timm = case.distance(&ours);
        assert!(distance_to_timm <= 2.0 * TOLERANCE, "{}: {distance_to_timm:e}", case.arguments);
        // ... which is recorded for the larger ones.
        if let Some(exact) = case.outputs.get(1) {
            let distance = distance(&ours, &exact.values);
            assert!(distance <= TOLERANCE, "{}: {distance:e}", case.arguments);
        }
    }
    assert_eq!(cases("patch", 24).iter().filter(|case| case.outputs.len() == 2).count(), 8);
}

#[test]
fn videos_become_images_and_images_videos() {
    hold("collapse", 12, |case| {
        let how = match case.text("how") {
            "sum" => Collapse::Sum,
            "mean" => Collapse::Mean,
            _ => Collapse::Centre,
        };
        conv3d_to_conv2d(&case.inputs[0].values, case.inputs[0].sides(), how)
    });
    hold("inflate", 8, |case| {
        let how = if case.text("how") == "repeat" { Inflate::Repeat } else { Inflate::Centre };
        conv2d_to_conv3d(&case.inputs[0].values, case.inputs[0].sides(), case.number("frames"), how)
    });
}

#[test]
fn channels_are_those_of_timm_and_of_the_formulas() {
    let mut refused = Vec::new();
    for case in cases("channels", 100) {
        let rule = match case.text("rule") {
            "timm" => Channels::Timm,
            "mean" => Channels::Mean,
            "sum" => Channels::Sum,
            "repeat" => Channels::Repeat,
            _ => Channels::First,
        };
        let (weight, to) = (&case.inputs[0], case.number("to"));
        let ours = input_channels(&weight.values, weight.sides(), to, rule);
        if let Some(theirs) = case.outputs.first() {
            let distance = case.distance(&ours.unwrap());
            assert!(distance <= TOLERANCE, "{}: {distance:e}", case.arguments);
            assert_eq!(rule.count(weight.shape[1], to), Ok(theirs.shape[1]), "{}", case.arguments);
        } else {
            assert_eq!(ours, Err(RemodelError::Channels { from: weight.shape[1], to }));
            refused.push((weight.shape[1], to));
        }
    }
    let known = [1, 2, 5, 6].into_iter().flat_map(|from| [1, 2, 3, 7].map(|to| (from, to)));
    let known = known.filter(|&(from, to)| from != to && !(to == 1 && from != 5) && !(to == 3 && from % 3 == 0));
    assert_eq!(refused, known.collect::<Vec<_>>());
}

#[test]
fn fixed_tables_are_those_of_mae_and_videomae() {
    hold("sincos", 4, |case| sincos_2d(case.number("width"), case.pair("grid"), case.flag("class_token")));
    hold("sinusoid", 4, |case| sinusoid_table(case.number("count"), case.number("width")));
}

#[test]
fn a_folded_head_does_what_norm_and_linear_did() {
    for case in cases("head", 3) {
        let [weight, bias, mean, variance, inputs] = [0, 1, 2, 3, 4].map(|at| case.inputs[at].values.as_slice());
        let eps = case.arguments["eps"].as_f64().unwrap();
        let (weight, bias) = fold_batch_norm(weight, bias, mean, variance, eps).unwrap();
        assert!(case.distance(&weight) <= TOLERANCE);
        assert!(distance(&bias, &case.outputs[1].values) <= TOLERANCE);
        let rows = inputs.chunks_exact(mean.len());
        let logit = |row: &[f32], weight: &[f32]| -> f64 {
            row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
        };
        let logits = rows.flat_map(|row| {
            weight
                .chunks_exact(mean.len())
                .zip(&bias)
                .map(move |(weight, &b)| (logit(row, weight) + f64::from(b)) as f32)
        });
        let distance = distance(&logits.collect::<Vec<_>>(), &case.outputs[2].values);
        assert!(distance <= TOLERANCE, "{distance:e}");
    }
}

#[test]
fn what_keeps_its_shape_keeps_its_bits() {
    let odd = [-0.0, 0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE / 8.0, f32::MAX, 0.1];
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let same = |ours: Result<Vec<f32>, RemodelError>| assert_eq!(bits(&ours.unwrap()), bits(&odd));
    for mode in [Mode::Bilinear, Mode::Bicubic] {
        for antialias in [false, true] {
            let how = Resampling { mode, antialias };
            same(interpolate(&odd, 2, (2, 2), (2, 2), how));
            same(patch_embedding(&odd, [2, 1, 2, 2], (2, 2), how));
            same(position_embedding(&odd, Positions { prefix: 2, grid: (3, 2), width: 1 }, (3, 2), how));
        }
    }
    same(ast_positions(&odd, Positions { prefix: 2, grid: (3, 2), width: 1 }, (3, 2)));
    for rule in [Channels::Timm, Channels::Mean, Channels::Sum, Channels::Repeat, Channels::First] {
        same(input_channels(&odd, [1, 4, 2, 1], 4, rule));
    }
    // The prefix and a cut are moved, not computed.
    let cut = ast_positions(&odd, Positions { prefix: 2, grid: (1, 6), width: 1 }, (1, 3)).unwrap();
    assert_eq!(bits(&cut), bits(&[odd[0], odd[1], odd[4], odd[5], odd[6]]));
    let cut = ast_positions(&odd, Positions { prefix: 0, grid: (4, 2), width: 1 }, (2, 1)).unwrap();
    assert_eq!(bits(&cut), bits(&[odd[3], odd[5]]));
}

/// Numbers at which products and conversions go wrong.
const EDGES: [usize; 6] = [0, 1 << 29, 1 << 32, 1 << 60, usize::MAX / 2 + 1, usize::MAX];

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    /// A small number mostly.
    fn side(&mut self) -> usize {
        if self.below(12) == 0 { EDGES[self.below(EDGES.len())] } else { 1 + self.below(9) }
    }

    fn sides<const N: usize>(&mut self) -> [usize; N] {
        [(); N].map(|()| self.side())
    }

    fn pair(&mut self) -> (usize, usize) {
        (self.side(), self.side())
    }

    /// As many values as a tensor of those sides has, mostly.
    fn values(&mut self, sides: &[usize], value: f32) -> Vec<f32> {
        let product = sides.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
        let length = product.filter(|&length| length < 1 << 17).unwrap_or(7);
        vec![value; if self.below(10) == 0 { length + self.below(3) } else { length }]
    }
}

/// A result has the length of its shape; a constant stays one; a refusal says something.
fn sound(result: Result<Vec<f32>, RemodelError>, shape: &[usize], value: Option<f32>) -> usize {
    match result {
        Ok(values) => {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{shape:?}");
            if let Some(value) = value {
                assert!(values.iter().all(|x| (x - value).abs() < 1e-5 * value.abs()), "{shape:?} {values:?}");
            }
            1
        }
        Err(error) => {
            assert!(error.to_string().len() > 40, "{error}");
            0
        }
    }
}

#[test]
fn no_shape_panics_and_constants_stay_constant() {
    let mut random = Random(20240417);
    let (mut done, rounds) = ([0; 9], 4000);
    for _ in 0..rounds {
        let mode = if random.below(2) == 0 { Mode::Bilinear } else { Mode::Bicubic };
        let how = Resampling { mode, antialias: random.below(2) == 0 };
        let (to, [out, input, frames, height, width]) = (random.pair(), random.sides());
        let grid = (height, width);

        let planes = random.values(&[out, height, width], 0.75);
        done[0] += sound(interpolate(&planes, out, grid, to, how), &[out, to.0, to.1], Some(0.75));

        let prefix = [0, 1, 2, usize::MAX, usize::MAX / 2][random.below(5)];
        let shape = Positions { prefix, grid, width: out };
        let tokens = |grid: (usize, usize)| grid.0.saturating_mul(grid.1).saturating_add(prefix);
        let table = random.values(&[tokens(grid), out], -3.0);
        done[1] += sound(position_embedding(&table, shape, to, how), &[tokens(to), out], Some(-3.0));
        done[2] += sound(ast_positions(&table, shape, to), &[tokens(to), out], Some(-3.0));

        let weight = random.values(&[out, input, height, width], 0.5);
        done[3] +=
            sound(patch_embedding(&weight, [out, input, height, width], to, how), &[out, input, to.0, to.1], None);

        let rules = [Channels::Timm, Channels::Mean, Channels::Sum, Channels::Repeat, Channels::First];
        let rule = rules[random.below(5)];
        let made = rule.count(input, to.0).unwrap_or(0);
        let ours = input_channels(&weight, [out, input, height, width], to.0, rule);
        done[4] += sound(ours, &[out, made, height, width], (rule == Channels::Mean).then_some(0.5));

        let video = random.values(&[out, input, frames, height, width], 1.0);
        let (how, value) =
            [(Collapse::Sum, frames as f32), (Collapse::Mean, 1.0), (Collapse::Centre, 1.0)][random.below(3)];
        let ours = conv3d_to_conv2d(&video, [out, input, frames, height, width], how);
        done[5] += sound(ours, &[out, input, height, width], Some(value));
        let how = [Inflate::Repeat, Inflate::Centre][random.below(2)];
        let ours = conv2d_to_conv3d(&weight, [out, input, height, width], frames, how);
        done[6] += sound(ours, &[out, input, frames, height, width], None);

        let class_token = random.below(2) == 0;
        let four = out.wrapping_mul([1, 4][random.below(2)]);
        let shape = [to.0.saturating_mul(to.1).saturating_add(class_token.into()), four];
        done[7] += sound(sincos_2d(four, to, class_token), &shape, None);
        let short = if random.below(3) == 0 { width } else { width.min(9) };
        done[8] += sound(sinusoid_table(short, out.max(9)), &[short, out.max(9)], None);

        let weight = random.values(&[out, width], 1.0);
        let [bias, mean, variance] = [out, width, width].map(|length| random.values(&[length], 1.0));
        if let Ok((weight, bias)) = fold_batch_norm(&weight, &bias, &mean, &variance, 0.0) {
            assert_eq!(weight.len(), bias.len() * mean.len());
            assert!(bias.iter().all(|bias| *bias == 1.0 - mean.len() as f32));
        }
    }
    assert!(done.iter().all(|&done| done > rounds / 10), "{done:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_a_way_out() {
    let how = Resampling::default();
    let shape = Positions { prefix: 1, grid: (2, 2), width: 3 };
    let refused = |result: Result<Vec<f32>, RemodelError>| result.unwrap_err().to_string();
    assert_eq!(
        refused(position_embedding(&[0.0; 12], shape, (3, 3), how)),
        "the table of positions has 12 values, but its shape [5, 3] takes 15; \
         give all values of the tensor, and its own shape"
    );
    assert_eq!(
        refused(position_embedding(&[0.0; 15], shape, (0, 3), how)),
        "the new table of positions of shape [0, 3] has no elements; every side must be at least 1"
    );
    assert_eq!(
        refused(position_embedding(&[0.0; 15], shape, (MAX_SIDE, MAX_SIDE), how)),
        "the new table of positions of shape [4294967297, 3] is too large: \
         more than 268435456 elements; choose smaller sides"
    );
    assert_eq!(
        refused(interpolate(&[0.0], 1, (1, 1), (1, MAX_SIDE + 1), how)),
        "the new grid of 1 x 65537 has a side of more than 65536; choose a smaller one"
    );
    assert_eq!(
        refused(input_channels(&[0.0; 2], [1, 2, 1, 1], 5, Channels::Timm)),
        "timm's rule does not make 5 input channels of 2: it knows 3 to any number, and groups of 3 to 1; \
         choose another rule: mean, sum, repeat or first"
    );
    assert_eq!(refused(sincos_2d(6, (2, 2), true)), RemodelError::Width { width: 6 }.to_string());
    for (variance, eps) in [(-1.0, 1e-5), (0.0, 0.0), (f32::NAN, 1e-5), (f32::INFINITY, 1e-5), (1.0, f64::NAN)] {
        let error = fold_batch_norm(&[1.0, 1.0], &[1.0], &[0.0, 0.0], &[1.0, variance], eps).unwrap_err();
        let first = if eps.is_nan() { 0 } else { 1 };
        assert!(matches!(error, RemodelError::Variance { feature, .. } if feature == first), "{error}");
    }
    assert!(std::mem::size_of::<RemodelError>() <= 128);
}

#[test]
fn the_longest_sides_are_resized() {
    for mode in [Mode::Bilinear, Mode::Bicubic] {
        for antialias in [true, false] {
            let how = Resampling { mode, antialias };
            let long = interpolate(&[1.0, 2.0], 1, (2, 1), (MAX_SIDE, 1), how).unwrap();
            assert_eq!(long.len(), MAX_SIDE);
            assert!((long[0] - 1.0).abs() < 0.2 && (long[MAX_SIDE - 1] - 2.0).abs() < 0.2, "{how:?}");
            let short = interpolate(&vec![0.5; MAX_SIDE], 1, (1, MAX_SIDE), (1, 3), how).unwrap();
            assert!(short.iter().all(|value| (value - 0.5).abs() < 1e-4), "{how:?} {short:?}");
        }
    }
}
