//! The fold of float16 on processors with AVX2 and F16C: all of x86-64-v3. (What is compiled for [`V3`] does not have F16C among its
//! instructions.)

use std::any::Any;
use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph};

use pulp::x86::V3;
use pulp::{Arch, Simd, WithSimd};

use super::simd::{Element, F16, Fold, Folded};

/// That the processor has AVX2 and F16C.
#[derive(Clone, Copy)]
pub(super) struct Converter(V3);

impl Converter {
    /// If vectors are to be those of AVX2, and there are such instructions.
    pub(super) fn of(arch: Arch) -> Option<Converter> {
        match arch {
            Arch::V3(simd) if is_x86_feature_detected!("f16c") => Some(Converter(simd)),
            _ => None,
        }
    }

    pub(super) fn fold(self, fold: Fold<'_, F16>) -> Folded {
        let Fold { source, first, more, out, lines } = fold;
        // SAFETY: the processor has these instructions: `self` says so.
        #[expect(unsafe_code, reason = "what a processor has is known when the program runs")]
        unsafe {
            run(self.0, Fold { source, first, more, out, lines })
        }
    }
}

#[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,fma,lzcnt,popcnt")]
fn run(simd: V3, fold: Fold<'_, Converted>) -> Folded {
    fold.with_simd(simd)
}

/// float16 that is converted by F16C; only what is compiled for that may use it.
#[derive(Clone, Copy)]
pub(super) struct Converted;

impl Element for Converted {
    type Bits = u16;
    type V3 = Converted;
    const LIMIT: f32 = F16::LIMIT;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        F16::widen(bits)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        F16::narrow(value)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, bits: &[u16]) -> S::f32s {
        if (&simd as &dyn Any).is::<V3>()
            && let Some((bits, _)) = bits.split_first_chunk::<8>()
        {
            // SAFETY: who uses this type is compiled for F16C.
            #[expect(unsafe_code, reason = "the library of vectors has no such operation")]
            let wide: [f32; 8] = pulp::cast(unsafe { _mm256_cvtph_ps(pulp::cast(*bits)) });
            return S::as_simd_f32s(&wide).0[0];
        }
        F16::load(simd, bits)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, values: S::f32s, bits: &mut [u16]) {
        if (&simd as &dyn Any).is::<V3>()
            && let Ok(values) = bytemuck::try_cast::<_, [f32; 8]>(values)
            && let Some((bits, _)) = bits.split_first_chunk_mut::<8>()
        {
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "the library of vectors has no such operation")]
            let narrow = unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(pulp::cast(values)) };
            *bits = pulp::cast(narrow);
            return;
        }
        F16::store(simd, values, bits);
    }
}
