//! Dense products by cuBLAS: the ceiling that our kernels are held against, and the peer that runs one
//! product per expert.
//!
//! All matrices are row-major bf16 with f32 accumulation: `C [m, n] = A [m, k] B [n, k]^T`, so that
//! weights lie as a checkpoint stores them.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublas::{CudaBlas, result, sys};
use cudarc::driver::CudaContext;

use super::cuda::CudaDevice;
use super::launch::Launcher;
use super::libraries::CudaLibrary;
use super::memory::Region;
use crate::{Error, Result};

/// Bytes of a bf16.
const BF16_BYTES: u64 = 2;

/// cuBLAS on the stream of one device.
pub struct Cublas {
    handle: CudaBlas,
    context: Arc<CudaContext>,
    device: String,
}

/// Sizes of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of A and C.
    pub m: usize,
    /// Rows of B, columns of C.
    pub n: usize,
    /// Columns of A and B.
    pub k: usize,
}

impl Product {
    /// Floating-point operations.
    pub const fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

impl Cublas {
    /// Opens the library for a device.
    ///
    /// # Errors
    /// [`Error::Device`] when the library is not there or refuses.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let name = device.gpu().name.clone();
        CudaLibrary::Cublas.open().map_err(|reason| Error::device(&name, reason))?;
        let handle = CudaBlas::new(device.stream().clone())
            .map_err(|e| Error::device(&name, format!("cuBLAS: {}", one_line(&e))))?;
        let context = Arc::clone(device.stream().context());
        Ok(Self { handle, context, device: name })
    }

    /// Makes the device's context that of the calling thread, which the library asks for.
    fn bind(&self) -> Result<()> {
        let bound = self.context.bind_to_thread();
        bound.map_err(|e| Error::device(&self.device, format!("cuBLAS: {}", one_line(&e))))
    }

    /// `c = a b^T`.
    ///
    /// # Errors
    /// [`Error::Usage`] when a region is too short or a size exceeds 31 bits; [`Error::Device`] when
    /// cuBLAS refuses.
    pub fn gemm_bf16(&self, product: Product, a: Region, b: Region, c: Region) -> Result<()> {
        use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let Product { m, n, k } = product;
        self.bind()?;
        let bytes = |rows: usize, columns: usize| {
            (rows as u64).checked_mul(columns as u64)?.checked_mul(BF16_BYTES)
        };
        let a = a.checked("a", bytes(m, k), 16)?;
        let b = b.checked("b", bytes(n, k), 16)?;
        let c = c.checked("c", bytes(m, n), 16)?;
        let (m, n, k) = (size("m", m)?, size("n", n)?, size("k", k)?);
        let (one, zero) = (1.0_f32, 0.0_f32);
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        // cuBLAS counts in columns: row-major C is the column-major C^T = B A^T.
        //
        // SAFETY: the regions are long enough for the sizes and leading dimensions, aligned, and on
        // the device of the handle; both factors are f32 as the compute type asks, and are read
        // before the call returns (host pointer mode).
        let done = unsafe {
            result::gemm_ex(
                *self.handle.handle(),
                CUBLAS_OP_T,
                CUBLAS_OP_N,
                n,
                m,
                k,
                (&raw const one).cast::<c_void>(),
                b.0 as *const c_void,
                bf16,
                k,
                a.0 as *const c_void,
                bf16,
                k,
                (&raw const zero).cast::<c_void>(),
                c.0 as *mut c_void,
                bf16,
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|e| Error::device(&self.device, format!("cuBLAS: {}", one_line(&e))))
    }
}

/// Many products of one call, each `c = a b^T` with sizes of its own. The library reads the addresses of
/// the matrices from device memory: they are put there once.
pub struct GroupedProducts {
    m: Vec<i32>,
    n: Vec<i32>,
    k: Vec<i32>,
    /// Addresses of all a, all b and all c.
    pointers: [Region; 3],
}

impl GroupedProducts {
    /// Prepares products, each with its a, b and c.
    ///
    /// # Errors
    /// As [`Cublas::gemm_bf16`]; [`Error::Usage`] for no product at all.
    pub fn new(device: &mut CudaDevice, products: &[(Product, [Region; 3])]) -> Result<Self> {
        if products.is_empty() {
            return Err(Error::usage("products", "there is none"));
        }
        let (mut m, mut n, mut k) = (Vec::new(), Vec::new(), Vec::new());
        let mut addresses = [Vec::new(), Vec::new(), Vec::new()];
        for (product, regions) in products {
            let sizes = [(product.m, product.k), (product.n, product.k), (product.m, product.n)];
            for ((list, region), (rows, columns)) in addresses.iter_mut().zip(regions).zip(sizes) {
                let bytes = (rows as u64).checked_mul(columns as u64);
                let bytes = bytes.and_then(|elements| elements.checked_mul(BF16_BYTES));
                list.extend(region.checked("matrix", bytes, 16)?.0.to_ne_bytes());
            }
            m.push(size("m", product.m)?);
            n.push(size("n", product.n)?);
            k.push(size("k", product.k)?);
        }
        let [a, b, c] = &addresses;
        let pointers = [device.store(a)?, device.store(b)?, device.store(c)?];
        Ok(Self { m, n, k, pointers })
    }

    /// Gives the memory of the addresses back.
    ///
    /// # Errors
    /// As [`Launcher::free`].
    pub fn free(self, device: &mut CudaDevice) -> Result<()> {
        self.pointers.into_iter().try_for_each(|region| device.free(region))
    }
}

impl Cublas {
    /// Runs prepared products. Their sizes are read on the host, so that a layer's must be known there.
    ///
    /// # Errors
    /// [`Error::Device`] when cuBLAS refuses.
    pub fn grouped_gemm_bf16(&self, products: &GroupedProducts) -> Result<()> {
        use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        self.bind()?;
        let GroupedProducts { m, n, k, pointers: [a, b, c] } = products;
        let count = m.len();
        let groups = size("products", count)?;
        let (transposed, plain) = (vec![CUBLAS_OP_T; count], vec![CUBLAS_OP_N; count]);
        let (ones, zeros, each) = (vec![1.0_f32; count], vec![0.0_f32; count], vec![1_i32; count]);
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        // SAFETY: every host array holds `groups` entries and outlives the call; the device arrays hold
        // as many addresses, of matrices that were checked for length and alignment; factors are f32
        // as the compute type asks. Sizes are turned round as in `gemm_bf16`.
        let status = unsafe {
            sys::cublasGemmGroupedBatchedEx(
                *self.handle.handle(),
                transposed.as_ptr(),
                plain.as_ptr(),
                n.as_ptr(),
                m.as_ptr(),
                k.as_ptr(),
                ones.as_ptr().cast(),
                b.address.0 as *const *const c_void,
                bf16,
                k.as_ptr(),
                a.address.0 as *const *const c_void,
                bf16,
                k.as_ptr(),
                zeros.as_ptr().cast(),
                c.address.0 as *const *mut c_void,
                bf16,
                n.as_ptr(),
                groups,
                each.as_ptr(),
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            )
        };
        status
            .result()
            .map_err(|e| Error::device(&self.device, format!("cuBLAS: {}", one_line(&e))))
    }
}

fn size(name: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::usage(name, format!("{value} exceeds 31 bits")))
}

fn one_line(error: &dyn fmt::Debug) -> String {
    format!("{error:?}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn a_product_is_that_of_the_plain_loops() {
        let opened = CudaDevice::open(0).and_then(|device| Ok((Cublas::new(&device)?, device)));
        let (blas, mut device) = match opened {
            Ok(opened) => opened,
            Err(reason) => return println!("SKIPPED: {reason}"),
        };
        let product = Product { m: 3, n: 8, k: 16 };
        // Small integers: every order of summation gives the same bits.
        let matrix = |length: usize, step: usize| -> Vec<bf16> {
            (0..length).map(|i| bf16::from_f32(((i * step) % 7) as f32 - 3.0)).collect()
        };
        let (a, b) = (matrix(3 * 16, 5), matrix(8 * 16, 3));
        let bytes = |v: &[bf16]| -> Vec<u8> { v.iter().flat_map(|x| x.to_ne_bytes()).collect() };
        let (on_a, on_b) = (device.store(&bytes(&a)).unwrap(), device.store(&bytes(&b)).unwrap());
        let on_c = device.allocate(3 * 8 * 2).unwrap();
        let matrices = [on_a, on_b, on_c];
        let grouped = GroupedProducts::new(&mut device, &[(product, matrices)]).unwrap();
        for in_a_group in [false, true] {
            device.fill(on_c, 0xff).unwrap();
            if in_a_group {
                blas.grouped_gemm_bf16(&grouped).unwrap();
            } else {
                blas.gemm_bf16(product, on_a, on_b, on_c).unwrap();
            }
            let mut out = vec![0; 3 * 8 * 2];
            device.download(on_c, &mut out).unwrap();
            for (i, pair) in out.chunks_exact(2).enumerate() {
                let (row, column) = (i / 8, i % 8);
                let exact: f32 =
                    (0..16).map(|k| a[row * 16 + k].to_f32() * b[column * 16 + k].to_f32()).sum();
                assert_eq!(bf16::from_ne_bytes([pair[0], pair[1]]), bf16::from_f32(exact), "{i}");
            }
        }
        grouped.free(&mut device).unwrap();
    }
}
