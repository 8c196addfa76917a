// How many multiply-adds per second the instructions of `accumulate` reach when nothing but registers is read: the
// ceiling of everything that rests on that loop.
#pragma once
#include <chrono>

#include "linear.hpp"

namespace kilotron::KILOTRON_ISA {

constexpr int64_t kChains = 12;  // additions under way at once: more than latency times throughput
// Starting the threads hardly counts beside so many seconds, and where others want the cores, one run of many fits
// between two of their turns: the best run counts.
constexpr double kShortestRun = 0.002;
constexpr int kRateRuns = 40;

// One chain for each register; the compiler may neither join nor drop them.
template <typename Step>
static void run_chains(int64_t steps, const Step& step) {
    Vec sums[kChains];
    for (Vec& sum : sums) sum = zero();
    for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 12
        for (int64_t c = 0; c < kChains; c++) sums[c] = step(sums[c]);
    float result[kPanel];
    for (const Vec& sum : sums) {
        store(result, sum);
        __asm__ volatile("" : : "r"(result) : "memory");
    }
}

// So many steps of float32 on this thread; returns floating-point operations, two for each multiply-add.
static double multiply_floats(int64_t steps) {
    const Vec weight = splat(0.5f), x = splat(1.0f);
#if KILOTRON_AVX512
    run_chains(steps, [&](Vec sum) { return fma(weight, x, sum); });
    return 2.0 * kPanel * kChains * static_cast<double>(steps);
#else
    // Half of a Vec: 12 whole ones would take more registers than there are.
    __m256 sums[kChains];
    for (__m256& sum : sums) sum = zero().lo;
    for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 12
        for (int64_t c = 0; c < kChains; c++) sums[c] = _mm256_fmadd_ps(weight.lo, x.lo, sums[c]);
    for (__m256& sum : sums) __asm__ volatile("" : : "x"(sum));
    return 2.0 * kPanel / 2 * kChains * static_cast<double>(steps);
#endif
}

#if KILOTRON_AMX

static double multiply_pairs(int64_t steps) {
    const TileUse tiles{};
    TileUse::configure(kPanel, kPanel);
    KILOTRON_TILE_ZERO(0);
    KILOTRON_TILE_ZERO(1);
    KILOTRON_TILE_ZERO(2);
    KILOTRON_TILE_ZERO(3);
    KILOTRON_TILE_ZERO(4);
    KILOTRON_TILE_ZERO(5);
    KILOTRON_TILE_ZERO(6);
    KILOTRON_TILE_ZERO(7);
    for (int64_t s = 0; s < steps; s++) {
        KILOTRON_TILE_MULTIPLY(0, 4, 6);
        KILOTRON_TILE_MULTIPLY(1, 4, 7);
        KILOTRON_TILE_MULTIPLY(2, 5, 6);
        KILOTRON_TILE_MULTIPLY(3, 5, 7);
    }
    return 4 * 2.0 * kPanel * kPanel * kInputs * static_cast<double>(steps);
}

#elif KILOTRON_BF16

static double multiply_pairs(int64_t steps) {
    const auto weight = (__m512bh)_mm512_set1_epi16(0x3f00), x = (__m512bh)_mm512_set1_epi16(0x3f80);  // 0.5, 1
    run_chains(steps, [&](Vec sum) { return Vec{_mm512_dpbf16_ps(sum.v, weight, x)}; });
    return 2 * 2.0 * kPanel * kChains * static_cast<double>(steps);
}

#else

static double multiply_pairs(int64_t steps) { return multiply_floats(steps); }

#endif

// Floating-point operations per second of all threads together, for weights of this format.
static double multiply_rate(Format format, int threads) {
    using Clock = std::chrono::steady_clock;
    const auto multiply = takes_floats(format) ? multiply_floats : multiply_pairs;
    int64_t steps = 1;
    double best = 0.0;
    for (int run = 0; run < kRateRuns;) {
        double operations[WorkRanges::kMostThreads] = {};
        const auto start = Clock::now();
        run_threads(threads, [&](int thread) { operations[thread] = multiply(steps); });
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        if (seconds < kShortestRun) {
            steps *= 2;
            continue;
        }
        run++;
        double total = 0.0;
        for (int thread = 0; thread < threads; thread++) total += operations[thread];
        if (total / seconds > best) best = total / seconds;
    }
    return best;
}

}  // namespace kilotron::KILOTRON_ISA
