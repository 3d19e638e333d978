// A small thread pool: callers work too, workers spin briefly and then sleep, chunks are claimed dynamically.
//
// Every thread begins with a range of chunks of its own, the same one whenever the same loop runs again, so that it finds in its
// own cache what it wrote there; then it helps the others with theirs (one range for all: relu of 512 x 768 floats 37 instead of
// 24 us, other row ops up to a third slower).
//
// Every running thread holds one of num_threads() slots, so several Python threads that call at once do not
// oversubscribe the machine: a caller that finds no free slot waits, and workers give theirs up to it at the next
// chunk. The pool is never destroyed (no joins at interpreter exit); a forked child starts a new one.
#include "core/parallel.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "core/cpu_count.h"

namespace qkv {
namespace {

constexpr int kMaxThreads = 1024;
// Spinning bridges the gap between two ops of a model (a few microseconds of Python) without a futex round trip.
constexpr auto kSpin = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Loop bodies run in the default floating-point mode: round to nearest, denormals kept. A caller may have set flush-to-zero
// (torch.set_flush_denormal, a library built with -ffast-math); its chunks must not differ from the workers'.
class DefaultFloatMode {
 public:
#if defined(__x86_64__) || defined(__i386__)
  DefaultFloatMode() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
  ~DefaultFloatMode() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  DefaultFloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~DefaultFloatMode() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#else
  DefaultFloatMode() {}
#endif
};

constexpr int kMaxRanges = 64;  // more threads than that share them

struct Loop {
  // Chunks of a range that are claimed so far, on a line of its own.
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };

  int64_t n, grain;
  int threads, ranges;
  LoopBody body;
  void* context;
  std::atomic<int> workers{0};  // inside this loop; grows under the pool's mutex only
  Loop* newer = nullptr;        // list of running loops
  Range range[kMaxRanges];

  Loop(int64_t items, int64_t chunk, int limit, LoopBody f, void* c) : n(items), grain(chunk), body(f), context(c) {
    const int64_t chunks = (n + grain - 1) / grain;
    threads = chunks < limit ? static_cast<int>(chunks) : limit;
    ranges = threads < kMaxRanges ? threads : kMaxRanges;
    for (int r = 0; r < ranges; ++r) {
      range[r].next.store(chunks * r / ranges, std::memory_order_relaxed);
      range[r].end = chunks * (r + 1) / ranges;
    }
  }
  // The next chunk for a thread, of the range that `from` names or of those after it.
  bool claim(int* from, int64_t* begin, int64_t* end) {
    for (int tried = 0; tried < ranges; ++tried) {
      Range& r = range[*from];
      // Read first: a range that is used up is not written to again by everybody who comes by.
      const int64_t chunk =
          r.next.load(std::memory_order_relaxed) < r.end ? r.next.fetch_add(1, std::memory_order_relaxed) : r.end;
      if (chunk < r.end) {
        *begin = chunk * grain;
        *end = *begin + grain < n ? *begin + grain : n;
        return true;
      }
      *from = *from + 1 < ranges ? *from + 1 : 0;
    }
    return false;
  }
  bool has_work() const {
    for (int r = 0; r < ranges; ++r)
      if (range[r].next.load(std::memory_order_relaxed) < range[r].end) return true;
    return false;
  }
};

struct Pool {
  std::mutex mutex;
  std::condition_variable wake;      // workers: there is a loop
  std::condition_variable finished;  // callers: a worker left a loop, or a slot came free
  Loop* loops = nullptr;
  int spawned = 0;                      // workers started so far; worker i has thread index i + 1
  int sleeping = 0;                     // workers inside wake.wait
  int running = 0;                      // slots taken
  std::atomic<int> callers_waiting{0};  // for a slot
  std::atomic<uint64_t> epoch{0};       // counts the loops started: what spinning workers watch

  void work(int index);
  void spawn(int wanted);
  void run(Loop& loop);
};

std::atomic<int> g_threads{0};
std::atomic<Pool*> g_pool{nullptr};
thread_local bool t_inside = false;  // this thread runs a loop body already

void Pool::work(int index) {
  t_inside = true;
  const DefaultFloatMode mode;
  uint64_t seen = 0;
  for (;;) {
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    while (epoch.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 32; ++i) relax();
      if (std::chrono::steady_clock::now() > give_up) break;
    }
    Loop* loop = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex);
      for (;;) {
        seen = epoch.load(std::memory_order_relaxed);
        const int slots = num_threads();
        if (running < slots && callers_waiting.load(std::memory_order_relaxed) == 0) {
          for (loop = loops; loop; loop = loop->newer)
            if (index < loop->threads && loop->has_work()) break;
        }
        if (loop) break;
        ++sleeping;
        wake.wait(lock, [&] { return epoch.load(std::memory_order_relaxed) != seen; });
        --sleeping;
      }
      ++running;
      loop->workers.fetch_add(1, std::memory_order_relaxed);
    }
    int from = index % loop->ranges;
    int64_t begin, end;
    while (callers_waiting.load(std::memory_order_relaxed) == 0 && loop->claim(&from, &begin, &end))
      loop->body(loop->context, begin, end, index);
    {
      std::lock_guard<std::mutex> lock(mutex);
      --running;
      loop->workers.fetch_sub(1, std::memory_order_release);  // the caller may now leave: loop is gone
      finished.notify_all();
    }
  }
}

void Pool::spawn(int wanted) {
  // Signals belong to Python's main thread; a worker that took SIGINT would delay Ctrl-C.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (spawned < wanted) {
    const int index = spawned + 1;
    try {
      std::thread([this, index] { work(index); }).detach();
    } catch (const std::exception&) {  // no more threads to be had: the loop runs on those there are
      break;
    }
    ++spawned;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::run(Loop& loop) {
  {
    std::unique_lock<std::mutex> lock(mutex);
    if (running >= num_threads()) {
      callers_waiting.fetch_add(1);
      finished.wait(lock, [&] { return running < num_threads(); });
      callers_waiting.fetch_sub(1);
    }
    ++running;
    if (spawned < loop.threads - 1) spawn(loop.threads - 1);
    loop.newer = loops;
    loops = &loop;
    epoch.fetch_add(1, std::memory_order_release);
    if (sleeping > 0) wake.notify_all();
  }
  t_inside = true;
  int from = 0;
  int64_t begin, end;
  while (loop.claim(&from, &begin, &end)) loop.body(loop.context, begin, end, 0);
  t_inside = false;

  for (int i = 0; i < 4096 && loop.workers.load(std::memory_order_acquire) > 0; ++i) relax();
  std::unique_lock<std::mutex> lock(mutex);
  Loop** link = &loops;
  while (*link != &loop) link = &(*link)->newer;
  *link = loop.newer;
  finished.wait(lock, [&] { return loop.workers.load(std::memory_order_acquire) == 0; });
  --running;
  // Another loop may have work for the slot: its workers went to sleep while all slots were taken.
  for (Loop* other = loops; other; other = other->newer)
    if (other->has_work()) {
      epoch.fetch_add(1, std::memory_order_release);
      wake.notify_all();
      break;
    }
  if (callers_waiting.load(std::memory_order_relaxed) > 0) finished.notify_all();
}

// fork copies only the calling thread: the child forgets the parent's pool (a small leak) and builds its own.
void forget_pool() {
  g_pool.store(new Pool);
  t_inside = false;
}

Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, forget_pool);
  });
  return *g_pool.load(std::memory_order_acquire);
}

}  // namespace

void prepare_threads() { pool(); }

int num_threads() {
  const int n = g_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  int counted = usable_cpus();
  if (counted > kMaxThreads) counted = kMaxThreads;
  int unset = 0;
  g_threads.compare_exchange_strong(unset, counted);
  return g_threads.load(std::memory_order_relaxed);
}

void set_num_threads(int n) { g_threads.store(n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n); }

void parallel_for(int64_t n, int64_t grain, int threads, LoopBody body, void* context) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const DefaultFloatMode mode;
  if (threads <= 1 || n <= grain || t_inside) {
    body(context, 0, n, 0);
    return;
  }
  Loop loop(n, grain, threads, body, context);
  pool().run(loop);
}

}  // namespace qkv
