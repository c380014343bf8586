// Threads that help the caller of a loop.
//
// OpenMP gives each thread its part of a loop, and the caller waits for all of them. If another process holds
// a core, every loop waits for the scheduler, and a call of `whiten` has hundreds of loops. Here each thread
// has its part, too, but takes it range by range, and then takes ranges of the other parts. The caller waits
// only for ranges that a helper has begun. So a helper without a core delays nothing.

#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace noisetilt {
namespace {

// A thread that waits spins this long, then sleeps. The loops of one call follow each other faster.
constexpr std::chrono::microseconds kSpin{100};
constexpr std::chrono::milliseconds kCrowded{20};  // how long lost cores count as a sign of other work
constexpr int64_t kRangesPerThread = 2;
constexpr int64_t kWholeVectors = 16;  // parts begin at multiples of this, so that few vectors are incomplete
constexpr int64_t kMostThreads = 1024;

thread_local bool inside_loop = false;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Returns true if `holds` becomes true within kSpin.
template <class Condition>
bool spin_until(const Condition& holds) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (holds()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return holds();
}

// Sleeps until `holds`. std::condition_variable::wait is a newer symbol than a manylinux wheel may need.
template <class Condition>
void wait_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
                const Condition& holds) {
  while (!changed.wait_for(lock, std::chrono::hours(1), holds)) {
  }
}

// Returns true if this thread lost its core to other ones twice in a short time, lately. A helper that is
// woken then may take the core from the caller. One loss is no sign of other work: it may be the end of a
// loop of OpenMP.
bool is_crowded() {
#ifdef RUSAGE_THREAD
  using Time = std::chrono::steady_clock::time_point;
  thread_local int64_t switches = 0;
  thread_local Time lost{}, crowded_until{};
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  const Time now = std::chrono::steady_clock::now();
  if (usage.ru_nivcsw != switches) {
    if (now < lost + kCrowded) crowded_until = now + kCrowded;
    lost = now;
  }
  switches = usage.ru_nivcsw;
  return now < crowded_until;
#else
  return false;
#endif
}

// Core that this thread runs on, or -1.
int current_core() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to another core, if it runs on this one and may run elsewhere. Linux may keep two threads
// on one core while another is idle: in a virtual machine it takes an idle core for one that the host has
// taken.
void leave_core(int core) {
#ifdef __linux__
  cpu_set_t allowed, others;
  if (core < 0 || sched_getcpu() != core || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)core;
#endif
}

class Helpers {
 public:
  // Runs the loop on `threads` threads, the calling one included, if there are as many. Returns false,
  // without running it, if another thread's loop has the helpers.
  bool run(int64_t count, int64_t grain, int64_t threads, RangeFunction body, void* context) {
    const std::unique_lock<std::mutex> mine(one_loop_, std::try_to_lock);
    if (!mine) return false;
    start_helpers(threads - 1);
    body_ = body;
    context_ = context;
    num_parts_ = threads;
    step_ = step_for(count, grain, threads);
    for (int64_t i = 0; i < threads; ++i) {
      parts_[i].next = whole_vectors(count * i / threads);
      parts_[i].end = i + 1 < threads ? whole_vectors(count * (i + 1) / threads) : count;
    }
    core_ = current_core();
    number_ = (number_ + 1) & 0xffffffff;
    state_ = number_ << 32 | static_cast<uint64_t>(threads - 1) * kHelper;
    const int64_t unused = num_helpers_ - (threads - 1);  // these sleep on: PyTorch had more threads before
    if (sleeping_ > std::max<int64_t>(unused, 0) && !is_crowded()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      opened_.notify_all();
    }
    inside_loop = true;
    take_ranges(0);
    inside_loop = false;
    state_.fetch_and(~kAllHelpers);
    auto empty = [this] { return (state_ & kAllInside) == 0; };
    if (!spin_until(empty)) {
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_ = true;
      wait_until(finished_, lock, empty);
      caller_sleeps_ = false;
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return true;
  }

 private:
  // state_: number of the loop, helpers that may enter, helpers inside.
  static constexpr uint64_t kInside = 1, kHelper = uint64_t(1) << 16, kAllInside = kHelper - 1,
                            kAllHelpers = kAllInside << 16;

  static int64_t whole_vectors(int64_t n) { return n / kWholeVectors * kWholeVectors; }
  static int64_t step_for(int64_t count, int64_t grain, int64_t threads) {
    return std::max(grain, count / (kRangesPerThread * threads));
  }

  void start_helpers(int64_t most) {
    try {
      for (; num_helpers_ < most; ++num_helpers_)
        std::thread(&Helpers::help, this, num_helpers_ + 1).detach();
    } catch (const std::system_error&) {  // the system allows no more threads; these do all the work
    }
  }

  // Helper `part` begins with this part of a loop. So its data stay in its core's cache from loop to loop.
  void help(int64_t part) {
    inside_loop = true;
    uint64_t last = 0;  // number of the last loop that this thread helped
    for (;;) {
      auto open = [&] {
        const uint64_t state = state_;
        return static_cast<int64_t>((state & kAllHelpers) / kHelper) >= part && state >> 32 != last;
      };
      if (!spin_until(open)) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleeping_;
        wait_until(opened_, lock, open);
        --sleeping_;
        lock.unlock();
        leave_core(core_);
      }
      uint64_t state = state_;
      if ((state & kAllHelpers) == 0 || !state_.compare_exchange_strong(state, state + kInside)) continue;
      last = state >> 32;
      take_ranges(part);
      if ((--state_ & kAllInside) == 0 && caller_sleeps_) {
        const std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_one();
      }
    }
  }

  // Takes ranges of one part of the loop, then of the parts of other threads.
  void take_ranges(int64_t first) {
    try {
      for (int64_t i = 0; i < num_parts_; ++i) {
        Part& part = parts_[(first + i) % num_parts_];
        for (int64_t begin; (begin = part.next.fetch_add(step_)) < part.end;)
          body_(begin, std::min(begin + step_, part.end), context_);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end;
  };

  std::mutex one_loop_;  // held by the thread whose loop it is
  int64_t num_helpers_ = 0;
  uint64_t number_ = 0;

  RangeFunction body_;
  void* context_;
  int64_t num_parts_, step_;
  std::atomic<int> core_{-1};  // of the caller
  Part parts_[kMostThreads];
  alignas(64) std::atomic<uint64_t> state_{0};

  alignas(64) std::mutex mutex_;  // of the members below
  std::condition_variable opened_, finished_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::exception_ptr error_;
};

// Never destroyed: helpers may outlive main. A child process of fork has no helpers and begins with new ones.
std::atomic<Helpers*> helpers{nullptr};

Helpers& get_helpers() {
  static std::mutex mutex;
  if (!helpers) {
    const std::lock_guard<std::mutex> lock(mutex);
    static const int registered = pthread_atfork(nullptr, nullptr, [] { helpers = nullptr; });
    (void)registered;
    if (!helpers) helpers = new Helpers;
  }
  return *helpers;
}

}  // namespace

void parallel_ranges(int64_t count, int64_t grain, RangeFunction body, void* context) {
  if (count <= 0) return;
  if (!inside_loop && count > grain) {
    const int64_t threads = std::min({int64_t(num_threads()), (count + grain - 1) / grain, kMostThreads});
    if (threads > 1 && get_helpers().run(count, grain, threads, body, context)) return;
  }
  body(0, count, context);
}

}  // namespace noisetilt
