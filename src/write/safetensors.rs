//! safetensors files.
//!
//! The header lists the tensors in the plan's order. Their data is ordered by element size, largest first (the order
//! among equals is the plan's), so that every tensor is aligned to its element size, as readers of the format expect.
//! The header is padded with spaces to a multiple of eight bytes.

use super::LayoutProblem;
use crate::plan::Plan;

/// The layout of a .safetensors file: the header is made, and every offset is known.
#[derive(Clone, Debug)]
pub(super) struct SafetensorsLayout {
    header: Vec<u8>,
    order: Vec<usize>,
    /// Where the data of each step begins, after the header, in that order.
    begins: Vec<u64>,
    data_bytes: u64,
}

impl SafetensorsLayout {
    pub(super) fn new(plan: &Plan, metadata: &[(String, String)]) -> Result<SafetensorsLayout, LayoutProblem> {
        let mut order: Vec<usize> = (0..plan.steps.len()).collect();
        order.sort_by_key(|&step| std::cmp::Reverse(plan.steps[step].dtype.size()));
        let mut begin = vec![0; plan.steps.len()];
        let mut data_bytes = 0;
        for &step in &order {
            begin[step] = data_bytes;
            data_bytes += plan.steps[step].bytes();
        }
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            let metadata = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into()));
            header.insert("__metadata__".into(), serde_json::Value::Object(metadata.collect()));
        }
        for output in &plan.outputs {
            let spec = &output.spec;
            if spec.name == "__metadata__" {
                return Err(LayoutProblem::ReservedName);
            }
            let dtype = spec
                .dtype
                .safetensors_name()
                .ok_or_else(|| LayoutProblem::Type { tensor: spec.name.clone(), dtype: spec.dtype })?;
            let (start, end) = (begin[output.step], begin[output.step] + plan.steps[output.step].bytes());
            let entry = serde_json::json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, end]});
            header.insert(spec.name.clone(), entry);
        }
        let mut json = serde_json::Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        let begins = order.iter().map(|&step| begin[step]).collect();
        Ok(SafetensorsLayout { header, order, begins, data_bytes })
    }

    /// All that comes before the data.
    pub(super) fn front(&self) -> &[u8] {
        &self.header
    }

    /// Where the data of the step at that place of the order begins.
    pub(super) fn begin(&self, place: usize) -> u64 {
        self.header.len() as u64 + self.begins[place]
    }

    /// The steps of the plan in the order in which they are to be written.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The size of the file, in bytes.
    #[must_use]
    pub(super) fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}
