//! What the parts take: `cargo bench`, or `cargo bench -- pickle` for those whose name has it.
//!
//! Kernels are measured through whole folds of a model of 35 MB of float32, which stays in the page cache.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use m2pt_surgery::{Checkpoint, DType, FoldRequest, LambdaSpec, pickle};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tempfile::TempDir;

fn main() {
    divan::main();
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The pickles of files: of 80 tensors, of 300 with what a training script saves beside them.
#[divan::bench(args = ["mnist_vit.pth", "mnist_pathway.pth"])]
fn pickle_parse(bencher: Bencher<'_, '_>, name: &str) {
    let mut archive = zip::ZipArchive::new(fs::File::open(fixture(name)).unwrap()).unwrap();
    let names = archive.file_names().map(std::result::Result::unwrap);
    let entry = names.into_iter().find(|name| name.ends_with("/data.pkl")).unwrap().into_owned();
    let mut bytes = Vec::new();
    archive.by_name(&entry).unwrap().read_to_end(&mut bytes).unwrap();
    bencher.counter(BytesCount::of_slice(&bytes)).bench(|| pickle::parse(divan::black_box(&bytes)).unwrap());
}

/// The directory, the pickle and the places of all tensors; no data.
#[divan::bench(args = ["mnist_vit.pth", "mnist_pathway.pth", "mnist_vit.safetensors", "torch_files/legacy.pth"])]
fn open(bencher: Bencher<'_, '_>, name: &str) {
    let path = fixture(name);
    bencher.bench(|| Checkpoint::open(divan::black_box(&path)).unwrap());
}

/// A header of 10,000 tensors.
#[divan::bench]
fn open_safetensors_of_many(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.safetensors");
    let tensors =
        (0..10_000).map(|n| (format!("blocks.{n}.weight"), TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
    serialize_to_file(tensors, None, &path).unwrap();
    bencher.counter(ItemsCount::new(10_000usize)).bench(|| Checkpoint::open(divan::black_box(&path)).unwrap());
}

/// A transformer of one block, 768 wide; two files of other numbers, finite in every type.
struct Models {
    folder: TempDir,
    bytes: usize,
}

impl Models {
    fn new(dtype: Dtype, numbers: usize) -> Models {
        let folder = tempfile::tempdir().unwrap();
        let shapes = [
            ("cls_token", vec![1, 1, 768]),
            ("pos_embed", vec![1, 197, 768]),
            ("patch_embed.proj.weight", vec![768, 3, 16, 16]),
            ("blocks.0.norm1.weight", vec![768]),
            ("blocks.0.attn.qkv.weight", vec![2304, 768]),
            ("blocks.0.attn.proj.weight", vec![768, 768]),
            ("blocks.0.mlp.fc1.weight", vec![3072, 768]),
            ("blocks.0.mlp.fc2.weight", vec![768, 3072]),
            ("head.weight", vec![1000, 768]),
        ];
        let mut state = 1u32;
        let mut sizes = Vec::new();
        for number in 0..numbers {
            let data: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| numbers_of(dtype, shape, &mut state)).collect();
            let tensors = shapes.iter().zip(&data);
            let tensors: Vec<_> = tensors
                .map(|((name, shape), data)| (*name, TensorView::new(dtype, shape.clone(), data).unwrap()))
                .collect();
            sizes.push(data.iter().map(Vec::len).sum::<usize>());
            serialize_to_file(tensors, None, &folder.path().join(format!("{number}.safetensors"))).unwrap();
        }
        Models { folder, bytes: sizes.iter().sum() }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("{number}.safetensors"))
    }

    /// Folds all files but the first into it.
    fn fold(&self, extension: &str, threads: usize, dtype: Option<DType>) {
        let mut request =
            FoldRequest::new(self.path(0), self.folder.path().join("out").with_extension(extension)).unwrap();
        for number in 1.. {
            match self.path(number) {
                aux if aux.exists() => request.add_aux(aux),
                _ => break,
            };
        }
        request.lambda = Some(LambdaSpec::parse("0.1").unwrap());
        request.dtype = dtype;
        request.run.threads = NonZeroUsize::new(threads);
        request.run.no_sync = true;
        request.force = true;
        request.open().unwrap().plan().unwrap().run(&mut ()).unwrap();
    }
}

fn numbers_of(dtype: Dtype, shape: &[usize], state: &mut u32) -> Vec<u8> {
    let count = shape.iter().product();
    let mut next = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let values = std::iter::repeat_with(&mut next).take(count);
    match dtype {
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}

/// A type, and threads; bytes are those that are read.
#[divan::bench(args = [
    (Dtype::F32, 1), (Dtype::F32, 2), (Dtype::F16, 1), (Dtype::F16, 2), (Dtype::BF16, 1), (Dtype::BF16, 2), (Dtype::F64, 1),
])]
fn fold(bencher: Bencher<'_, '_>, (dtype, threads): (Dtype, usize)) {
    let models = Models::new(dtype, 2);
    bencher.counter(BytesCount::new(models.bytes)).bench_local(|| models.fold("safetensors", threads, None));
}

#[divan::bench(args = [1, 2])]
fn fold_into_pth(bencher: Bencher<'_, '_>, threads: usize) {
    let models = Models::new(Dtype::F32, 2);
    bencher.counter(BytesCount::new(models.bytes)).bench_local(|| models.fold("pth", threads, None));
}

#[divan::bench(args = [1, 2])]
fn fold_three_auxiliaries(bencher: Bencher<'_, '_>, threads: usize) {
    let models = Models::new(Dtype::F32, 4);
    bencher.counter(BytesCount::new(models.bytes)).bench_local(|| models.fold("safetensors", threads, None));
}

#[divan::bench(args = [DType::F16, DType::BF16])]
fn fold_f32_and_cast(bencher: Bencher<'_, '_>, dtype: DType) {
    let models = Models::new(Dtype::F32, 2);
    bencher.counter(BytesCount::new(models.bytes)).bench_local(|| models.fold("safetensors", 1, Some(dtype)));
}
