// How a panel's line for one pair of inputs becomes an operand of the multiply-add, for each storage format.
//
// Two ways to multiply: `dot` (AVX512-BF16: pairs of bf16, one instruction) where the format's values are exact in
// bf16 and the machine has it; otherwise two fused multiply-adds in float32, even input first. Either way an output
// is one chain of additions in ascending order of inputs.
#pragma once
#include <type_traits>

#include "simd.hpp"

namespace kilotron::KILOTRON_ISA {

constexpr bool is_exact_in_bf16(Format format) {
    return format == Format::bf16 || format == Format::i8 || format == Format::i4;
}

// The pair of inputs `even`, `odd` of 16 outputs.
struct FloatPair {
    Vec even, odd;
};

template <Format format>
struct FloatOperand {
    using Input = float;
    using Pair = FloatPair;

    static inline FloatPair load(const std::byte* panel, int64_t pair, IntVec offsets) {
        if constexpr (format == Format::f32) {
            const float* line = reinterpret_cast<const float*>(panel) + pair * 2 * kPanel;
            return {kilotron::KILOTRON_ISA::load(line), kilotron::KILOTRON_ISA::load(line + kPanel)};
        } else if constexpr (format == Format::f16) {
            const uint16_t* line = reinterpret_cast<const uint16_t*>(panel) + pair * 2 * kPanel;
            return {load_f16(line), load_f16(line + kPanel)};
        } else if constexpr (format == Format::bf16) {
            const IntVec both = load_int(panel + pair * 4 * kPanel);
            return {from_bits(shift_left<16>(both)), from_bits(bit_and(both, splat_int(-65536)))};
        } else if constexpr (format == Format::i8) {
            const IntVec both = widen_u16(reinterpret_cast<const uint16_t*>(panel) + pair * kPanel);
            return {to_float(shift_right_signed<24>(shift_left<24>(both))),
                    to_float(shift_right_signed<24>(shift_left<16>(both)))};
        } else {
            const IntVec two_pairs = widen_u16(reinterpret_cast<const uint16_t*>(panel) + pair / 2 * kPanel);
            const IntVec both = pair % 2 ? shift_right<4>(two_pairs) : two_pairs;
            const IntVec less = add(offsets, splat_int(-16));
            return {to_float(add(bit_and(both, splat_int(15)), less)),
                    to_float(add(bit_and(shift_right<8>(both), splat_int(15)), less))};
        }
    }

    static inline Vec multiply(Vec sum, const FloatPair& pair, const float* x) {
        return fma(pair.odd, splat(x[1]), fma(pair.even, splat(x[0]), sum));
    }
};

#if KILOTRON_BF16

template <Format format>
struct DotOperand {
    using Input = uint16_t;
    using Pair = __m512bh;

    static inline __m512bh load(const std::byte* panel, int64_t pair, IntVec offsets) {
        if constexpr (format == Format::bf16) {
            return (__m512bh)_mm512_loadu_si512(panel + pair * 4 * kPanel);
        } else if constexpr (format == Format::i8) {
            const auto* line = reinterpret_cast<const int8_t*>(panel) + pair * 2 * kPanel;
            return _mm512_cvtne2ps_pbh(to_float(widen_s8(line + 16)).v, to_float(widen_s8(line)).v);
        } else {
            // Values -16 ... 15 by number: value - zero = table[value + (16 - zero)].
            const __m512i table = _mm512_set_epi16(
                0x4170, 0x4160, 0x4150, 0x4140, 0x4130, 0x4120, 0x4110, 0x4100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040,
                0x4000, 0x3f80, 0, (int16_t)0xbf80, (int16_t)0xc000, (int16_t)0xc040, (int16_t)0xc080, (int16_t)0xc0a0,
                (int16_t)0xc0c0, (int16_t)0xc0e0, (int16_t)0xc100, (int16_t)0xc110, (int16_t)0xc120, (int16_t)0xc130,
                (int16_t)0xc140, (int16_t)0xc150, (int16_t)0xc160, (int16_t)0xc170, (int16_t)0xc180);
            const __m512i both =
                _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(panel + pair / 2 * 2 * kPanel)));
            const __m512i nibbles =
                pair % 2 ? _mm512_srli_epi16(both, 4) : _mm512_and_si512(both, _mm512_set1_epi16(15));
            return (__m512bh)_mm512_permutexvar_epi16(_mm512_add_epi16(nibbles, offsets.v), table);
        }
    }

    static inline Vec multiply(Vec sum, __m512bh pair, const uint16_t* x) {
        int32_t both;
        std::memcpy(&both, x, sizeof(both));
        return {_mm512_dpbf16_ps(sum.v, pair, (__m512bh)_mm512_set1_epi32(both))};
    }
};

template <Format format>
using Operand = std::conditional_t<is_exact_in_bf16(format), DotOperand<format>, FloatOperand<format>>;

#else

template <Format format>
using Operand = FloatOperand<format>;

#endif

// The 16 zero offsets of a group as `load` wants them: one per output, and for `dot` one per value of the pair.
template <Format format>
static inline IntVec load_offsets(const uint8_t* offsets) {
    if constexpr (format == Format::i4) {
        const IntVec one = widen_u8(offsets);
        if constexpr (std::is_same_v<typename Operand<format>::Input, float>) return one;
        return bit_or(one, shift_left<16>(one));
    }
    return splat_int(0);
}

}  // namespace kilotron::KILOTRON_ISA
