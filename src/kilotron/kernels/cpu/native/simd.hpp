// Sixteen floats at a time, on AVX-512 or on AVX2 twice. Every function treats each lane alike and alone, so a value's
// bits never depend on its lane; sums over lanes are taken in one fixed order.
//
// The including file defines KILOTRON_ISA (a namespace) and KILOTRON_AVX512 (0 or 1).
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "types.hpp"

namespace kilotron::KILOTRON_ISA {

#if KILOTRON_AVX512

struct Vec {
    __m512 v;
};
struct IntVec {
    __m512i v;
};

static inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline void store_f16(uint16_t* p, Vec a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of a and b; b where one of them is NaN.
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline Vec round_down(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
// Bit i says whether lane i of a is at least that of b; not where one of them is NaN.
static inline uint32_t at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
static inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
static inline IntVec bits_of(Vec a) { return {_mm512_castps_si512(a.v)}; }
static inline Vec from_bits(IntVec a) { return {_mm512_castsi512_ps(a.v)}; }
static inline IntVec splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline IntVec to_int(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline Vec to_float(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline IntVec add(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
// a times 2 to the power of n, a whole number.
static inline Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
static inline IntVec bit_and(IntVec a, IntVec b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline IntVec bit_or(IntVec a, IntVec b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int N>
static inline IntVec shift_left(IntVec a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N>
static inline IntVec shift_right(IntVec a) { return {_mm512_srli_epi32(a.v, N)}; }
template <int N>
static inline IntVec shift_right_signed(IntVec a) { return {_mm512_srai_epi32(a.v, N)}; }
static inline IntVec load_int(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_int(void* p, IntVec a) { _mm512_storeu_si512(p, a.v); }
static inline IntVec widen_u16(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
static inline IntVec widen_s8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline IntVec widen_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline void store_narrow(uint16_t* p, IntVec a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v)); }
static inline IntVec select_nan(Vec a, IntVec yes, IntVec no) {
    return {_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), no.v, yes.v)};
}
static inline float sum(Vec a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float max_of(Vec a) { return _mm512_reduce_max_ps(a.v); }

#else

struct Vec {
    __m256 lo, hi;
};
struct IntVec {
    __m256i lo, hi;
};

static inline Vec splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, Vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline Vec load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_f16(uint16_t* p, Vec a) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
static inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
static inline Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
static inline Vec round_even(Vec a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
static inline Vec round_down(Vec a) {
    constexpr int mode = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
static inline uint32_t at_least(Vec a, Vec b) {
    const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ));
    const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ));
    return static_cast<uint32_t>(lo | hi << 8);
}
static inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
static inline IntVec bits_of(Vec a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
static inline Vec from_bits(IntVec a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
static inline IntVec splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline IntVec to_int(Vec a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
static inline Vec to_float(IntVec a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
static inline IntVec add(IntVec a, IntVec b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
static inline IntVec bit_and(IntVec a, IntVec b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
static inline IntVec bit_or(IntVec a, IntVec b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int N>
static inline IntVec shift_left(IntVec a) { return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)}; }
template <int N>
static inline IntVec shift_right(IntVec a) { return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)}; }
template <int N>
static inline IntVec shift_right_signed(IntVec a) { return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)}; }
static inline Vec scale_by_power(Vec a, Vec n) {
    return mul(a, from_bits(shift_left<23>(add(to_int(n), splat_int(127)))));
}
static inline IntVec load_int(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
static inline void store_int(void* p, IntVec a) {
    _mm256_storeu_si256((__m256i*)p, a.lo);
    _mm256_storeu_si256((__m256i*)p + 1, a.hi);
}
static inline IntVec widen_u16(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline IntVec widen_s8(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline IntVec widen_u8(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline void store_narrow(uint16_t* p, IntVec a) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i both = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(both, 0xd8));
}
static inline IntVec select_nan(Vec a, IntVec yes, IntVec no) {
    const __m256i lo = _mm256_castps_si256(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q));
    const __m256i hi = _mm256_castps_si256(_mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q));
    return {_mm256_blendv_epi8(no.lo, yes.lo, lo), _mm256_blendv_epi8(no.hi, yes.hi, hi)};
}
static inline float sum(Vec a) {
    const __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float max_of(Vec a) {
    const __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#endif

static inline Vec zero() { return splat(0.0f); }

static inline Vec load_bf16(const uint16_t* p) { return from_bits(shift_left<16>(widen_u16(p))); }

// Rounds to nearest, ties to even; NaN stays NaN.
static inline void store_bf16(uint16_t* p, Vec a) {
    const IntVec bits = bits_of(a);
    const IntVec odd = bit_and(shift_right<16>(bits), splat_int(1));
    const IntVec rounded = shift_right<16>(add(add(bits, splat_int(0x7fff)), odd));
    const IntVec quiet = bit_or(shift_right<16>(bits), splat_int(0x40));
    store_narrow(p, select_nan(a, quiet, rounded));
}

// Types of elements in memory, and how 16 of them become floats.
struct F32 {
    using Item = float;
    static inline Vec read(const Item* p) { return load(p); }
    static inline void write(Item* p, Vec a) { store(p, a); }
};
struct F16 {
    using Item = uint16_t;
    static inline Vec read(const Item* p) { return load_f16(p); }
    static inline void write(Item* p, Vec a) { store_f16(p, a); }
};
struct BF16 {
    using Item = uint16_t;
    static inline Vec read(const Item* p) { return load_bf16(p); }
    static inline void write(Item* p, Vec a) { store_bf16(p, a); }
};

// The first n (1 to 16) of 16 elements; the others read as zero and are not written.
template <typename Type>
static inline Vec read_some(const typename Type::Item* p, int64_t n) {
    if (n >= kPanel) return Type::read(p);
    typename Type::Item part[kPanel] = {};
    std::memcpy(part, p, static_cast<size_t>(n) * sizeof(part[0]));
    return Type::read(part);
}
template <typename Type>
static inline void write_some(typename Type::Item* p, Vec a, int64_t n) {
    if (n >= kPanel) {
        Type::write(p, a);
        return;
    }
    typename Type::Item part[kPanel];
    Type::write(part, a);
    std::memcpy(p, part, static_cast<size_t>(n) * sizeof(part[0]));
}

// Calls work(Type()) with the type of a dtype.
template <typename Work>
static inline void with_type(DType dtype, const Work& work) {
    switch (dtype) {
        case DType::f32: return work(F32());
        case DType::f16: return work(F16());
        case DType::bf16: return work(BF16());
    }
}

// 2 to the power of x, within 2 units in the last place from -126 to 127, and 2^-126 below; NaN for NaN. The polynomial
// is the Taylor series of 2^r in r ln 2, whose next term is below 2e-8 for |r| <= 1/2.
static inline Vec exp2(Vec x) {
    x = max(splat(-126.0f), x);
    const Vec n = round_even(x);
    const Vec r = sub(x, n);
    Vec p = splat(1.5403530394e-4f);
    p = fma(p, r, splat(1.3333558146e-3f));
    p = fma(p, r, splat(9.6181291076e-3f));
    p = fma(p, r, splat(5.5504108665e-2f));
    p = fma(p, r, splat(2.4022650696e-1f));
    p = fma(p, r, splat(6.9314718056e-1f));
    p = fma(p, r, splat(1.0f));
    return scale_by_power(p, n);
}

// e to the power of x, within 2 units in the last place between -87.3 and 88, 0 below and infinite above; NaN for NaN.
// After Cephes' expf.
static inline Vec exp(Vec x) {
    const Vec lowest = splat(-87.33654f), highest = splat(88.02969f);
    const Vec clamped = max(lowest, min(highest, x));
    const Vec n = round_even(mul(clamped, splat(1.44269504f)));
    Vec r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), splat(1.0f));
    const Vec bounded = select_less(highest, x, splat(INFINITY), scale_by_power(p, n));
    return select_less(x, lowest, zero(), bounded);
}

static inline Vec absolute(Vec x) { return from_bits(bit_and(bits_of(x), splat_int(0x7fffffff))); }
static inline Vec with_sign_of(Vec magnitude, Vec x) {
    return from_bits(bit_or(bits_of(magnitude), bit_and(bits_of(x), splat_int(INT32_MIN))));
}

// After Cephes' tanhf.
static inline Vec tanh(Vec x) {
    const Vec size = absolute(x);
    const Vec square = mul(x, x);
    Vec p = splat(-5.70498872745e-3f);
    p = fma(p, square, splat(2.06390887954e-2f));
    p = fma(p, square, splat(-5.37397155531e-2f));
    p = fma(p, square, splat(1.33314422036e-1f));
    p = fma(p, square, splat(-3.33332819422e-1f));
    const Vec near = fma(mul(p, square), x, x);
    const Vec far = sub(splat(1.0f), div(splat(2.0f), add(exp(add(size, size)), splat(1.0f))));
    return select_less(size, splat(0.625f), near, with_sign_of(far, x));
}

// Within 2e-7. Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
static inline Vec erf(Vec x) {
    const Vec size = absolute(x);
    const Vec t = div(splat(1.0f), fma(size, splat(0.3275911f), splat(1.0f)));
    Vec p = splat(1.061405429f);
    p = fma(p, t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    const Vec tail = mul(mul(p, t), exp(sub(zero(), mul(size, size))));
    return with_sign_of(sub(splat(1.0f), tail), x);
}

static inline Vec apply(Function function, Vec x) {
    switch (function) {
        case Function::none: return x;
        case Function::silu: return div(x, add(splat(1.0f), exp(sub(zero(), x))));
        case Function::quick_gelu: return div(x, add(splat(1.0f), exp(mul(x, splat(-1.702f)))));
        case Function::gelu: {
            const Vec half = mul(x, splat(0.5f));
            return fma(half, erf(mul(x, splat(0.70710678f))), half);
        }
        case Function::gelu_tanh: {
            const Vec half = mul(x, splat(0.5f));
            const Vec inner = mul(x, fma(mul(x, x), splat(0.7978845608f * 0.044715f), splat(0.7978845608f)));
            return fma(half, tanh(inner), half);
        }
        case Function::relu: return max(zero(), x);
        case Function::relu2: {
            const Vec positive = max(zero(), x);
            return mul(positive, positive);
        }
    }
    return x;
}

// NaN stays NaN: the second operand is what comes out then.
static inline Vec activate(const Activation& activation, Vec x) {
    if (activation.clamp != 0) x = min(splat(activation.clamp), x);
    return apply(activation.function, x);
}

// The half that a gate multiplies.
static inline Vec adjust_linear(const Activation& activation, Vec x) {
    if (activation.clamp != 0) x = max(splat(-activation.clamp), min(splat(activation.clamp), x));
    return activation.linear_offset != 0 ? add(x, splat(activation.linear_offset)) : x;
}

}  // namespace kilotron::KILOTRON_ISA
