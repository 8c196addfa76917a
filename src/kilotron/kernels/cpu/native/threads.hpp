// Runs work on OpenMP threads: torch's own pool, since this library is linked without a runtime of its own.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>

namespace kilotron::KILOTRON_ISA {

// Numbers 0 .. count - 1, dealt to threads in contiguous ranges; who is done takes from the end of another's range.
// So each thread walks through neighbouring work, and one that the system holds up does not hold up the others.
class WorkRanges {
  public:
    static constexpr int kMostThreads = 256;

    WorkRanges(int64_t count, int threads) : threads_(threads) {
        for (int thread = 0; thread < threads; thread++) {
            const auto first = static_cast<uint32_t>(count * thread / threads);
            const auto last = static_cast<uint32_t>(count * (thread + 1) / threads);
            ranges_[thread].span.store(join(first, last), std::memory_order_relaxed);
        }
    }

    // The next number for a thread, or -1 when all are taken.
    int64_t take(int thread) {
        for (int other = 0; other < threads_; other++) {
            std::atomic<uint64_t>& span = ranges_[(thread + other) % threads_].span;
            uint64_t seen = span.load(std::memory_order_relaxed);
            while (first_of(seen) < last_of(seen)) {
                const uint64_t rest = other == 0 ? join(first_of(seen) + 1, last_of(seen))
                                                 : join(first_of(seen), last_of(seen) - 1);
                if (span.compare_exchange_weak(seen, rest, std::memory_order_relaxed))
                    return other == 0 ? first_of(seen) : last_of(seen) - 1;
            }
        }
        return -1;
    }

  private:
    static uint64_t join(uint32_t first, uint32_t last) { return uint64_t{last} << 32 | first; }
    static uint32_t first_of(uint64_t span) { return static_cast<uint32_t>(span); }
    static uint32_t last_of(uint64_t span) { return static_cast<uint32_t>(span >> 32); }

    struct alignas(64) Range {
        std::atomic<uint64_t> span;
    };
    Range ranges_[kMostThreads];
    int threads_;
};

// Calls work(thread) on each of `threads` threads; a single one is the caller's.
template <typename Work>
void run_threads(int threads, const Work& work) {
    if (threads <= 1) {
        work(0);
        return;
    }
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num());
}

}  // namespace kilotron::KILOTRON_ISA
