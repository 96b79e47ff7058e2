//! NVIDIA's driver: loaded when a GPU is asked for, and the few calls of it that a fold needs.
//!
//! The calls have had the same names, arguments and meaning since CUDA 4 (those that end in `_v2`) or before. A thread may make any of them
//! at any time, once the context is current in it.

#![expect(unsafe_code, reason = "a C library is unsafe by nature; see the SAFETY notes")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use libloading::Library;

/// The kernels, for any GPU: the driver translates them for the one that there is.
const PTX: &str = include_str!("fold.ptx");

/// The driver's library, which comes with the driver.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum CudaError {
    /// The library is not there.
    #[error("NVIDIA's driver is not installed here, there is no {LIBRARY}")]
    NoDriver,
    /// The library lacks a call.
    #[error("NVIDIA's driver is too old, its {LIBRARY} has no {0}")]
    OldDriver(&'static str),
    /// There is no GPU.
    #[error("there is no GPU that CUDA can use")]
    NoDevice,
    /// There are GPUs, but not so many.
    #[error("the last of the GPUs is cuda:{last}")]
    NoSuchDevice {
        /// Its number.
        last: c_int,
    },
    /// A call failed.
    #[error("{call}: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// The driver's number for the reason.
        code: c_int,
        /// The reason in words.
        reason: String,
    },
}

impl CudaError {
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, CudaError::Call { code: OUT_OF_MEMORY, .. })
    }

    /// Whether there simply is no GPU.
    pub(in crate::engine) fn is_absent(&self) -> bool {
        matches!(self, CudaError::NoDriver | CudaError::NoDevice)
    }
}

type Handle = *mut c_void;
/// An address in the GPU's memory.
type Address = u64;

macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        #[expect(non_snake_case, reason = "the driver's own names")]
        #[derive(Debug)]
        struct Api {
            $($name: unsafe extern "system" fn($($argument),*) -> c_int,)*
            /// Never unloaded: a driver leaves threads and handlers behind.
            _library: ManuallyDrop<Library>,
        }

        impl Api {
            fn load() -> Result<Api, CudaError> {
                // SAFETY: what loading NVIDIA's driver executes is its own initialisation, which every program that uses it relies on.
                let library = unsafe { Library::new(LIBRARY) }.map_err(|_| CudaError::NoDriver)?;
                Ok(Api {
                    $($name: {
                        // SAFETY: the type is that of the driver's header for this name.
                        let symbol = unsafe { library.get(stringify!($name)) };
                        *symbol.map_err(|_| CudaError::OldDriver(stringify!($name)))?
                    },)*
                    _library: ManuallyDrop::new(library),
                })
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxPushCurrent_v2(Handle);
    cuCtxPopCurrent_v2(*mut Handle);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuMemAlloc_v2(*mut Address, usize);
    cuMemFree_v2(Address);
    cuMemHostAlloc(*mut Handle, usize, c_uint);
    cuMemFreeHost(Handle);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle);
    cuLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Handle, *mut Handle
    );
    cuGetErrorString(c_int, *mut *const c_char);
}

/// Makes a call, and an error of what it returns.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),* $(,)?)) => {
        $api.check(stringify!($name), ($api.$name)($($argument),*))
    };
}

impl Api {
    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the driver puts the address of a text there that is never freed, or leaves it null for a number that it does not know.
        let known = unsafe { (self.cuGetErrorString)(code, &raw mut text) } == 0 && !text.is_null();
        // SAFETY: such a text ends in a zero byte.
        let text = known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        let reason = text.map_or_else(|| format!("error {code}"), |text| format!("{text} (error {code})"));
        Err(CudaError::Call { call, code, reason })
    }
}

/// A GPU's context.
#[derive(Debug)]
struct Context {
    api: Api,
    device: c_int,
    handle: Handle,
}

impl Context {
    fn open(number: usize) -> Result<Context, CudaError> {
        let api = Api::load()?;
        // SAFETY: as are all calls below: arguments are those of the driver's header, and what it writes to outlives the call.
        unsafe {
            match call!(api, cuInit(0)) {
                Err(CudaError::Call { code: NO_DEVICE, .. }) => return Err(CudaError::NoDevice),
                done => done?,
            }
            let (mut count, mut device, mut handle) = (0, 0, null_mut());
            call!(api, cuDeviceGetCount(&raw mut count))?;
            let number = match c_int::try_from(number) {
                _ if count <= 0 => return Err(CudaError::NoDevice),
                Ok(number) if number < count => number,
                _ => return Err(CudaError::NoSuchDevice { last: count - 1 }),
            };
            call!(api, cuDeviceGet(&raw mut device, number))?;
            call!(api, cuDevicePrimaryCtxRetain(&raw mut handle, device))?;
            Ok(Context { api, device, handle })
        }
    }

    /// Makes the context that of this thread, until what is returned is dropped.
    fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { call!(self.api, cuCtxPushCurrent_v2(self.handle)) }?;
        Ok(Entered(&self.api))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and nothing that belongs to it is left.
        unsafe { (self.api.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// The calls, in a thread whose context is that of the GPU. Whoever uses this crate may have another one, which comes back.
struct Entered<'c>(&'c Api);

impl Deref for Entered<'_> {
    type Target = Api;

    fn deref(&self) -> &Api {
        self.0
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut context = null_mut();
        // SAFETY: it is the one that was pushed.
        unsafe { (self.0.cuCtxPopCurrent_v2)(&raw mut context) };
    }
}

/// A GPU with the kernels on it.
#[derive(Debug)]
pub(super) struct Gpu {
    fold_f32: Handle,
    fold_f64: Handle,
    gather: Handle,
    module: Handle,
    /// Last: the module is unloaded before.
    context: Context,
}

// SAFETY: handles are the driver's own, which may be used in any thread, in several at a time.
unsafe impl Send for Gpu {}
// SAFETY: the same.
unsafe impl Sync for Gpu {}

impl Gpu {
    pub(super) fn open(number: usize) -> Result<Gpu, CudaError> {
        let context = Context::open(number)?;
        let api = context.enter()?;
        // The text cannot hold a zero byte: it is a constant of this program.
        let ptx = CString::new(PTX).unwrap_or_default();
        let mut module = null_mut();
        // SAFETY: the text ends in a zero byte, and is copied.
        unsafe { call!(api, cuModuleLoadData(&raw mut module, ptx.as_ptr().cast())) }?;
        drop(api);
        let mut gpu = Gpu { fold_f32: null_mut(), fold_f64: null_mut(), gather: null_mut(), module, context };
        gpu.fold_f32 = gpu.function(c"fold_f32")?;
        gpu.fold_f64 = gpu.function(c"fold_f64")?;
        gpu.gather = gpu.function(c"gather")?;
        Ok(gpu)
    }

    fn function(&self, name: &CStr) -> Result<Handle, CudaError> {
        let mut function = null_mut();
        let api = self.context.enter()?;
        // SAFETY: the module is loaded until this is dropped.
        unsafe { call!(api, cuModuleGetFunction(&raw mut function, self.module, name.as_ptr())) }?;
        Ok(function)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if let Ok(api) = self.context.enter() {
            // SAFETY: it was loaded, and no kernel of it runs: slots wait for theirs, and hold this.
            unsafe { (api.cuModuleUnload)(self.module) };
        }
    }
}

/// How large the parts of a [`Slot`] are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// What is uploaded.
    pub(super) up: usize,
    /// What is downloaded.
    pub(super) down: usize,
    /// What the GPU alone sees.
    pub(super) scratch: usize,
}

/// What the GPU is to do with what was put into a [`Slot`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// Whether it is computed in float64.
    pub(super) wide: bool,
    /// How many bytes of the input are uploaded.
    pub(super) up: usize,
    /// How many bytes are downloaded: `sums` tallies, and the elements, from `out_at` on.
    pub(super) down: usize,
    /// Where in the download the elements begin.
    pub(super) out_at: usize,
    /// How many elements.
    pub(super) count: u64,
    /// How many tensors there are in the input.
    pub(super) operands: u32,
    /// The type that is written, as fold.cu numbers them.
    pub(super) dtype: u32,
    /// Blocks of threads, and threads in a block.
    pub(super) threads: (u32, u32),
    /// The same for the threads that add up tallies: one for each that is downloaded.
    pub(super) sums: (u32, u32),
}

/// A queue of work for a GPU, with memory there, and memory here that it reads and writes by itself.
#[derive(Debug)]
pub(super) struct Slot {
    sizes: Sizes,
    /// Whether the GPU may be at work on it.
    busy: bool,
    stream: Handle,
    up: *mut u8,
    down: *mut u8,
    memory: Address,
    gpu: Arc<Gpu>,
}

// SAFETY: its memory is its own, and the driver's handles may be used in any thread.
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn new(gpu: &Arc<Gpu>, sizes: Sizes) -> Result<Slot, CudaError> {
        let (up, down) = (null_mut(), null_mut());
        let mut slot = Slot { sizes, busy: false, stream: null_mut(), up, down, memory: 0, gpu: Arc::clone(gpu) };
        let api = gpu.context.enter()?;
        // SAFETY: what was made is freed when the slot is dropped, whatever of it there is by then.
        unsafe {
            call!(api, cuMemAlloc_v2(&raw mut slot.memory, sizes.up + sizes.down + sizes.scratch))?;
            for (place, bytes) in [(&mut slot.up, sizes.up), (&mut slot.down, sizes.down)] {
                let mut memory = null_mut();
                call!(api, cuMemHostAlloc(&raw mut memory, bytes, 0))?;
                *place = memory.cast();
                // A slice needs bytes that have a value.
                place.write_bytes(0, bytes);
            }
            // 1: it does not wait for the default stream.
            call!(api, cuStreamCreate(&raw mut slot.stream, 1))?;
        }
        Ok(slot)
    }

    /// Where the input is put; waits until the GPU is done with it.
    pub(super) fn input(&mut self) -> Result<&mut [u8], CudaError> {
        self.wait()?;
        // SAFETY: so many bytes were allocated and initialised, and the GPU does not use them now.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.up, self.sizes.up) })
    }

    /// Has the GPU fetch the input, compute, and bring back the output, and does not wait for it.
    pub(super) fn start(&mut self, job: &Job) -> Result<(), CudaError> {
        assert!(job.up <= self.sizes.up && job.down <= self.sizes.down, "{job:?} in {:?}", self.sizes);
        self.wait()?;
        let api = self.gpu.context.enter()?;
        let function = if job.wide { self.gpu.fold_f64 } else { self.gpu.fold_f32 };
        let (mut input, mut sums) = (self.memory, self.memory + self.sizes.up as u64);
        let (mut output, mut scratch) = (sums + job.out_at as u64, sums + self.sizes.down as u64);
        let (mut count, mut operands, mut dtype) = (job.count, job.operands, job.dtype);
        let mut tallies = u64::from(job.threads.0) * u64::from(job.threads.1);
        // Whatever fails below, what was queued before it may be running.
        self.busy = true;
        // SAFETY: the memory on both sides is at least so large; the arguments are those of the kernels in fold.cu, and are copied by the
        // call; and nobody touches the memory here before it was waited for.
        unsafe {
            call!(api, cuMemcpyHtoDAsync_v2(input, self.up.cast(), job.up, self.stream))?;
            let mut arguments: [Handle; 6] = [
                (&raw mut input).cast(),
                (&raw mut output).cast(),
                (&raw mut scratch).cast(),
                (&raw mut count).cast(),
                (&raw mut operands).cast(),
                (&raw mut dtype).cast(),
            ];
            let ((blocks, threads), arguments) = (job.threads, arguments.as_mut_ptr());
            call!(api, cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, self.stream, arguments, null_mut()))?;
            let mut arguments: [Handle; 3] =
                [(&raw mut scratch).cast(), (&raw mut sums).cast(), (&raw mut tallies).cast()];
            let ((blocks, threads), arguments) = (job.sums, arguments.as_mut_ptr());
            let gather = self.gpu.gather;
            call!(api, cuLaunchKernel(gather, blocks, 1, 1, threads, 1, 1, 0, self.stream, arguments, null_mut()))?;
            call!(api, cuMemcpyDtoHAsync_v2(self.down.cast(), sums, job.down, self.stream))
        }
    }

    /// What the GPU brought back; waits for it.
    pub(super) fn output(&mut self) -> Result<&[u8], CudaError> {
        self.wait()?;
        // SAFETY: so many bytes were allocated and initialised, and the GPU does not use them now.
        Ok(unsafe { std::slice::from_raw_parts(self.down, self.sizes.down) })
    }

    fn wait(&mut self) -> Result<(), CudaError> {
        if self.busy {
            let api = self.gpu.context.enter()?;
            // SAFETY: the stream is this slot's own.
            unsafe { call!(api, cuStreamSynchronize(self.stream)) }?;
            // Only now: a slot that could not be waited for is never touched again.
            self.busy = false;
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let waited = self.wait();
        let Ok(api) = self.gpu.context.enter() else { return };
        // SAFETY: these are the slot's own, and nobody uses them any more. Memory that the GPU may still be writing to
        // stays allocated.
        unsafe {
            if !self.stream.is_null() {
                (api.cuStreamDestroy_v2)(self.stream);
            }
            if waited.is_err() {
                return;
            }
            for memory in [self.up, self.down].into_iter().filter(|memory| !memory.is_null()) {
                (api.cuMemFreeHost)(memory.cast());
            }
            if self.memory != 0 {
                (api.cuMemFree_v2)(self.memory);
            }
        }
    }
}
