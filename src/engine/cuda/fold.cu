// The arithmetic of a fold, for NVIDIA GPUs: the same bits as src/engine/kernels.rs.
//
// fold.ptx beside it is this file, compiled by build_ptx.py; the driver translates it for the GPU that it finds. Products and sums are
// written as the intrinsics that are never fused. Conversions of half types are integer arithmetic, so that they are the same
// on every GPU, and on the processor, where the tests run this file.
//
// No thread needs another one: each computes its elements and notes what it found, and `gather` adds the notes up in a fixed order.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// As in layout.rs.
#define F16 0
#define BF16 1
#define F32 2
#define F64 3
// Elements of a thread.
#define EACH 16

// A tensor in the input: where its elements begin, its type, and what it is multiplied by (the first: by nothing).
struct Operand {
    u64 at;
    double lambda;
    u32 dtype;
    u32 unused;
};

// What was found in some elements.
struct Tally {
    // Sums of squares, of the source and of the terms' sum.
    double source;
    double change;
    // Results that are NaN or infinite.
    u32 bad;
    // Finite numbers that became infinite, and others than 0 that became 0, when they were stored.
    u32 overflow;
    u32 underflow;
    u32 unused;
};

__device__ static float half_to_float(u16 half) {
    u32 sign = (u32)(half & 0x8000) << 16;
    u32 exponent = half >> 10 & 0x1f;
    u32 mantissa = half & 0x3ff;
    if (exponent == 0x1f) {
        return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    }
    if (exponent) {
        return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    }
    // 2^-24 for each unit: exact.
    float small = __fmul_rn((float)mantissa, __uint_as_float(0x33800000));
    return __uint_as_float(sign | __float_as_uint(small));
}

// To nearest even.
__device__ static u16 float_to_half(float value) {
    u32 bits = __float_as_uint(value);
    u16 sign = (u16)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) {
        return sign | 0x7e00;
    }
    // From half way between 65504 and 65536 on.
    if (bits >= 0x477ff000) {
        return sign | 0x7c00;
    }
    // The smallest number with an exponent of its own is 2^-14.
    if (bits >= 0x38800000) {
        u32 rounded = bits + 0xfff + (bits >> 13 & 1);
        return (u16)(sign | ((rounded - 0x38000000) >> 13));
    }
    // Half of 2^-24 or less is 0.
    if (bits <= 0x33000000) {
        return sign;
    }
    // In units of 2^-24: the mantissa, moved right by 14 to 24 places.
    u32 places = 126 - (bits >> 23);
    u32 mantissa = (bits & 0x7fffff) | 0x800000;
    u32 whole = mantissa >> places;
    u32 rest = mantissa & ((1u << places) - 1);
    u32 half_way = 1u << (places - 1);
    whole += rest > half_way || (rest == half_way && (whole & 1));
    return (u16)(sign | whole);
}

__device__ static float bf16_to_float(u16 value) {
    return __uint_as_float((u32)value << 16);
}

// To nearest even.
__device__ static u16 float_to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (u16)(bits >> 16 | 0x40);
    }
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ static float load_float(u32 dtype, const u8 *from, u64 index) {
    switch (dtype) {
    case F16:
        return half_to_float(((const u16 *)from)[index]);
    case BF16:
        return bf16_to_float(((const u16 *)from)[index]);
    default:
        return ((const float *)from)[index];
    }
}

// The two types that are computed in.
__device__ static void load(u32 dtype, const u8 *from, u64 index, float *value) {
    *value = load_float(dtype, from, index);
}

__device__ static void load(u32 dtype, const u8 *from, u64 index, double *value) {
    *value = dtype == F64 ? ((const double *)from)[index] : (double)load_float(dtype, from, index);
}

__device__ static float multiply(float a, float b) {
    return __fmul_rn(a, b);
}

__device__ static double multiply(double a, double b) {
    return __dmul_rn(a, b);
}

__device__ static float add(float a, float b) {
    return __fadd_rn(a, b);
}

__device__ static double add(double a, double b) {
    return __dadd_rn(a, b);
}

__device__ static float narrow(float value) {
    return value;
}

// The half types are made of float64 by way of float32, as PyTorch makes them.
__device__ static float narrow(double value) {
    return __double2float_rn(value);
}

__device__ static bool is_finite(double value) {
    return ((u64)__double_as_longlong(value) >> 52 & 0x7ff) != 0x7ff;
}

// Stores a value, and returns what it has become.
template <typename T> __device__ static double store(u32 dtype, T value, u8 *to, u64 index) {
    switch (dtype) {
    case F16: {
        u16 half = float_to_half(narrow(value));
        ((u16 *)to)[index] = half;
        return (double)half_to_float(half);
    }
    case BF16: {
        u16 half = float_to_bf16(narrow(value));
        ((u16 *)to)[index] = half;
        return (double)bf16_to_float(half);
    }
    case F32: {
        float single = narrow(value);
        ((float *)to)[index] = single;
        return (double)single;
    }
    default:
        ((double *)to)[index] = (double)value;
        return (double)value;
    }
}

template <typename T>
__device__ static void fold(const u8 *input, u8 *output, Tally *tallies, u64 count, u32 operands, u32 dtype) {
    const Operand *operand = (const Operand *)input;
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    // Neighbours in a block of threads have neighbouring elements.
    u64 first = (u64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    Tally tally = {0.0, 0.0, 0, 0, 0, 0};
    for (u32 turn = 0; turn < EACH; turn++) {
        u64 index = first + (u64)turn * blockDim.x;
        if (index >= count) {
            break;
        }
        T source, change = 0;
        load(operand[0].dtype, input + operand[0].at, index, &source);
        T sum = source;
        for (u32 number = 1; number < operands; number++) {
            T value;
            load(operand[number].dtype, input + operand[number].at, index, &value);
            // The product is rounded, then the sum is.
            T product = multiply((T)operand[number].lambda, value);
            sum = add(sum, product);
            change = add(change, product);
        }
        double stored = store(dtype, sum, output, index), wanted = (double)sum;
        tally.source = __dadd_rn(tally.source, __dmul_rn((double)source, (double)source));
        tally.change = __dadd_rn(tally.change, __dmul_rn((double)change, (double)change));
        tally.bad += !is_finite(stored);
        tally.overflow += is_finite(wanted) && !is_finite(stored);
        tally.underflow += wanted != 0.0 && stored == 0.0;
    }
    tallies[thread] = tally;
}

extern "C" __global__ void fold_f32(const u8 *input, u8 *output, Tally *tallies, u64 count, u32 operands, u32 dtype) {
    fold<float>(input, output, tallies, count, operands, dtype);
}

extern "C" __global__ void fold_f64(const u8 *input, u8 *output, Tally *tallies, u64 count, u32 operands, u32 dtype) {
    fold<double>(input, output, tallies, count, operands, dtype);
}

// Adds `count` tallies up to as many as there are threads.
extern "C" __global__ void gather(const Tally *tallies, Tally *sums, u64 count) {
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    Tally sum = {0.0, 0.0, 0, 0, 0, 0};
    for (u64 index = thread; index < count; index += (u64)gridDim.x * blockDim.x) {
        sum.source = __dadd_rn(sum.source, tallies[index].source);
        sum.change = __dadd_rn(sum.change, tallies[index].change);
        sum.bad += tallies[index].bad;
        sum.overflow += tallies[index].overflow;
        sum.underflow += tallies[index].underflow;
    }
    sums[thread] = sum;
}
