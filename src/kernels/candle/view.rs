//! Reading a tensor's values through its layout, and writing a result in a tensor's own format.

use candle_core::{CpuStorage, DType, Layout, Result, bail};
use half::{bf16, f16};

/// Appends the values that `layout` selects from `storage` to `out`, widened to single precision, in
/// row-major order of the layout's dimensions.
pub(super) fn read(storage: &CpuStorage, layout: &Layout, out: &mut Vec<f32>) -> Result<()> {
    out.clear();
    out.reserve(layout.shape().elem_count());
    match storage {
        CpuStorage::F32(v) => gather(v, layout, |v| v, out),
        CpuStorage::BF16(v) => gather(v, layout, bf16::to_f32, out),
        CpuStorage::F16(v) => gather(v, layout, f16::to_f32, out),
        other => bail!("need f32, bf16 or f16 values, have {:?}", dtype(other)),
    }
    Ok(())
}

/// `values` in the format of `like`.
pub(super) fn store(values: &[f32], like: &CpuStorage) -> Result<CpuStorage> {
    Ok(match like {
        CpuStorage::F32(_) => CpuStorage::F32(values.to_vec()),
        CpuStorage::BF16(_) => {
            CpuStorage::BF16(values.iter().map(|&v| bf16::from_f32(v)).collect())
        }
        CpuStorage::F16(_) => CpuStorage::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
        other => bail!("need f32, bf16 or f16 values, have {:?}", dtype(other)),
    })
}

fn dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// Walks the layout row by row: strides and offset may be anything that candle's views produce.
fn gather<T: Copy>(values: &[T], layout: &Layout, widen: impl Fn(T) -> f32, out: &mut Vec<f32>) {
    if let Some((start, end)) = layout.contiguous_offsets() {
        out.extend(values[start..end].iter().map(|&v| widen(v)));
        return;
    }
    let (Some((&width, dims)), Some((&step, strides))) =
        (layout.dims().split_last(), layout.stride().split_last())
    else {
        return;
    };
    let rows: usize = dims.iter().product();
    let mut index = vec![0; dims.len()];
    for _ in 0..rows {
        let start: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
        let start = start + layout.start_offset();
        out.extend((0..width).map(|i| widen(values[start + i * step])));
        for (i, &dim) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            if *i < dim {
                break;
            }
            *i = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Storage, Tensor};
    use proptest::prelude::*;

    fn through_view(tensor: &Tensor) -> Vec<f32> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("on the CPU") };
        let mut out = vec![7.0];
        read(storage, layout, &mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn views_are_read_as_candle_reads_them(
            (a, b, c) in (1usize..5, 1usize..6, 1usize..7),
            order in Just([0usize, 1, 2]).prop_shuffle(),
            (dim, start, keep) in (0usize..3, 0usize..4, 1usize..4),
        ) {
            let values: Vec<f32> = (0u16..).take(a * b * c).map(f32::from).collect();
            let tensor = Tensor::from_vec(values, (a, b, c), &Device::Cpu).unwrap();
            let view = tensor.permute(order).unwrap();
            let size = view.dims()[dim];
            let start = start % size;
            let view = view.narrow(dim, start, keep.min(size - start)).unwrap();
            let expected: Vec<f32> = view.flatten_all().unwrap().to_vec1().unwrap();
            prop_assert_eq!(through_view(&view), expected);
        }
    }

    #[test]
    fn broadcast_views_repeat_their_values() {
        let row = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let view = row.broadcast_as((2, 3)).unwrap();
        assert_eq!(through_view(&view), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn integers_are_refused() {
        let storage = CpuStorage::U32(vec![1, 2]);
        let layout = Layout::contiguous((2,));
        let error = read(&storage, &layout, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("U32"), "{error}");
        assert!(store(&[1.0], &storage).is_err());
    }
}
