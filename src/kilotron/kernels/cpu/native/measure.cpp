#include "measure.hpp"

#include <omp.h>

#include <chrono>
#include <cstring>

#include "memory.hpp"
#include "types.hpp"

namespace kilotron {

namespace {

constexpr int kPasses = 4;
constexpr int64_t kPieceBytes = int64_t{1} << 24;  // for each thread: a millisecond, which fits between turns of others
constexpr int64_t kStreams = 4;      // places that a thread reads from in turn, as the kernels do with panels
constexpr int64_t kLine = 64;
constexpr int64_t kReadAhead = 2048;  // bytes; as far as the kernels ask for lines

// One word of each line brings in all of it.
uint64_t read_part(const std::byte* data, int64_t bytes) {
    const int64_t stream_bytes = bytes / kStreams / kLine * kLine;
    uint64_t sums[kStreams] = {};
    for (int64_t at = 0; at < stream_bytes; at += kLine)
        for (int64_t stream = 0; stream < kStreams; stream++) {
            const std::byte* line = data + stream * stream_bytes + at;
            __builtin_prefetch(line + kReadAhead, 0, 2);
            uint64_t word;
            std::memcpy(&word, line, sizeof(word));
            sums[stream] += word;
        }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

double read_bandwidth(int64_t bytes, int threads) {
    using Clock = std::chrono::steady_clock;
    const int64_t pieces = divide_up(bytes, threads * kPieceBytes);
    const Buffer buffer(static_cast<size_t>(pieces * threads * kPieceBytes));
    double best = 0.0;
    for (int64_t run = 0; run < (1 + kPasses) * pieces; run++) {
        const bool is_first = run < pieces;
        const auto start = Clock::now();
#pragma omp parallel num_threads(threads)
        {
            std::byte* mine = buffer.data() + (run % pieces * threads + omp_get_thread_num()) * kPieceBytes;
            if (is_first) {
                std::memset(mine, 1, kPieceBytes);  // pages that nobody wrote are all one page of zeros
            } else {
                const uint64_t sum = read_part(mine, kPieceBytes);
                __asm__ volatile("" : : "r"(sum));
            }
        }
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        const double rate = static_cast<double>(threads) * kPieceBytes / seconds;
        if (!is_first && rate > best) best = rate;
    }
    return best;
}

}  // namespace kilotron
