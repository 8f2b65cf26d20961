// SPDX-License-Identifier: Apache-2.0
// The scheduler behind cuda_runtime.h: the threads of a block as fibers on one thread of the host.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

enum class State { fresh, ready, at_block_barrier, at_warp_barrier, finished };

// A fiber runs threads to their end, one after the other, until one of them waits; then it is that thread's.
struct Fiber {
  static constexpr size_t stack_bytes = 256 * 1024;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  bool started = false;
  void* sanitizer_stack = nullptr;
};

struct Thread {
  State state = State::fresh;
  uint3 index{};
  unsigned mask = 0;
  int predicate = 0;
  uint64_t offered = 0, taken = 0;  // in an exchange within the warp
  Fiber* fiber = nullptr;
};

inline std::string& error_text() {
  static std::string text;
  return text;
}
inline int take_error() {
  static std::string reported;
  const bool failed = !error_text().empty() && error_text() != reported;
  reported = error_text();
  return failed;
}

class Block {
 public:
  uint3 index{};
  dim3 size, grid;

  Thread& thread() { return threads_[current_]; }
  int lane() const { return current_ % 32; }
  bool has_lane(int lane) const { return current_ / 32 * 32 + lane < count(); }
  uint64_t taken(int lane) const { return threads_[current_ / 32 * 32 + lane].taken; }

  // The sum of the predicates of all threads.
  int wait_for_block(int predicate) {
    thread().predicate = predicate != 0;
    wait(State::at_block_barrier);
    return barrier_sum_;
  }
  void wait_for_warp(unsigned mask) {
    if (!(mask >> lane() & 1u)) fail("a warp operation by a lane that its mask leaves out");
    thread().mask = mask;
    wait(State::at_warp_barrier);
  }

  void poison_once(void* data, size_t bytes) {
    if (std::find(poisoned_.begin(), poisoned_.end(), data) != poisoned_.end()) return;
    poisoned_.push_back(data);
    std::memset(data, 0xff, bytes);
  }

  void prepare(dim3 grid_size, dim3 block_size, std::vector<int> order, std::function<void()> body) {
    grid = grid_size;
    size = block_size;
    order_ = std::move(order);
    body_ = std::move(body);
    threads_.assign(size.x * size.y * size.z, {});
  }

  void run(uint3 block_index) {
    index = block_index;
    poisoned_.clear();
    begun_ = 0;
    for (int t = 0; t < count(); ++t) {
      threads_[t] = {};
      threads_[t].index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    }
    do {
      while (begun_ < count() && !failed_) start_threads();
      for (const int t : order_)
        if (threads_[t].state == State::ready && !failed_) resume(threads_[t].fiber, t);
    } while (!failed_ && (any(State::ready) || release_warps() || release_block()));
  }

  bool failed() const { return failed_; }

 private:
  std::vector<Thread> threads_;
  std::vector<int> order_;
  std::vector<void*> poisoned_;
  std::function<void()> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  ucontext_t scheduler_;
  void* scheduler_stack_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
  int current_ = 0, begun_ = 0, barrier_sum_ = 0;
  bool failed_ = false;

  int count() const { return static_cast<int>(threads_.size()); }

  void fail(const std::string& text) {
    static int number = 0;  // so that no two errors are the same
    failed_ = true;
    error_text() = text + " (error " + std::to_string(++number) + ")";
  }

  bool any(State state) const {
    return std::any_of(threads_.begin(), threads_.end(), [&](const Thread& t) { return t.state == state; });
  }

  void start_threads() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    if (!fiber->started) {
      fiber->started = true;
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get();
      fiber->context.uc_stack.ss_size = Fiber::stack_bytes;
      fiber->context.uc_link = nullptr;
      const auto pointer = reinterpret_cast<uintptr_t>(this), own = reinterpret_cast<uintptr_t>(fiber);
      makecontext(&fiber->context, reinterpret_cast<void (*)()>(&Block::enter), 4, unsigned(pointer), unsigned(pointer >> 32),
                  unsigned(own), unsigned(own >> 32));
    }
    resume(fiber, -1);
  }

  static void enter(unsigned low, unsigned high, unsigned fiber_low, unsigned fiber_high) {
    auto* block = reinterpret_cast<Block*>(uintptr_t(high) << 32 | low);
    auto* fiber = reinterpret_cast<Fiber*>(uintptr_t(fiber_high) << 32 | fiber_low);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &block->host_stack_, &block->host_stack_bytes_);
#endif
    for (;;) block->run_threads(fiber);
  }

  void run_threads(Fiber* fiber) {
    bool waited = false;
    while (!waited && begun_ < count() && !failed_) {
      const int mine = current_ = order_[begun_++];
      threads_[mine].fiber = fiber;
      threads_[mine].state = State::ready;
      const int starts = begun_;
      body_();
      threads_[mine].state = State::finished;
      waited = begun_ != starts;  // others began meanwhile, so this one waited: the scheduler goes on
    }
    idle_.push_back(fiber);
    yield(fiber);
  }

  void wait(State state) {
    const int mine = current_;
    threads_[mine].state = state;
    yield(threads_[mine].fiber);
    current_ = mine;
  }

  void resume(Fiber* fiber, int thread) {
    if (thread >= 0) current_ = thread;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_stack_, fiber->stack.get(), Fiber::stack_bytes);
#endif
    swapcontext(&scheduler_, &fiber->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_stack_, nullptr, nullptr);
#endif
  }

  void yield(Fiber* fiber) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fiber->sanitizer_stack, host_stack_, host_stack_bytes_);
#endif
    swapcontext(&fiber->context, &scheduler_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber->sanitizer_stack, &host_stack_, &host_stack_bytes_);
#endif
  }

  // Warps of which every lane in the mask has arrived, or is finished, go on together.
  bool release_warps() {
    bool released = false;
    for (int first = 0; first < count(); first += 32) {
      const int lanes = std::min(32, count() - first);
      for (int lane = 0; lane < lanes; ++lane) {
        if (threads_[first + lane].state != State::at_warp_barrier) continue;
        const unsigned mask = threads_[first + lane].mask;
        bool complete = true;
        for (int other = 0; other < lanes; ++other) {
          const Thread& t = threads_[first + other];
          if (mask >> other & 1u) complete &= t.state == State::finished || (t.state == State::at_warp_barrier && t.mask == mask);
        }
        if (!complete) continue;
        for (int other = 0; other < lanes; ++other) {
          Thread& t = threads_[first + other];
          if (!(mask >> other & 1u) || t.state != State::at_warp_barrier) continue;
          t.taken = t.offered;
          t.state = State::ready;
          released = true;
        }
      }
    }
    return released;
  }

  // All threads that are not finished wait at the block's barrier, or none may.
  bool release_block() {
    int waiting = 0, unfinished = 0, sum = 0;
    for (const Thread& t : threads_) {
      unfinished += t.state != State::finished;
      waiting += t.state == State::at_block_barrier;
      sum += t.state == State::at_block_barrier ? t.predicate : 0;
    }
    if (unfinished == 0) return false;
    if (waiting != unfinished) {
      fail("only " + std::to_string(waiting) + " of " + std::to_string(unfinished) + " threads reach a barrier");
      return false;
    }
    barrier_sum_ = sum;
    for (Thread& t : threads_)
      if (t.state == State::at_block_barrier) t.state = State::ready;
    return true;
  }
};

inline std::unique_ptr<Block>& block_pointer() {
  static std::unique_ptr<Block> pointer = std::make_unique<Block>();
  return pointer;
}
inline Block& block() { return *block_pointer(); }
inline void poison_once(void* data, size_t bytes) { block().poison_once(data, bytes); }

inline std::vector<int> permutation(int64_t count) {
  std::vector<int> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int>(i);
  const char* wish = std::getenv("EMULATION_ORDER");
  const std::string name = wish ? wish : "forward";
  if (name == "reverse") std::reverse(order.begin(), order.end());
  if (name.rfind("random:", 0) == 0) std::shuffle(order.begin(), order.end(), std::mt19937(std::stoi(name.substr(7))));
  return order;
}

template <typename Body>
void launch(dim3 grid, dim3 size, const Body& body) {
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z, threads = uint64_t(size.x) * size.y * size.z;
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads == 0 || threads > 1024 || size.z > 64) {
    static int number = 0;
    error_text() = "an illegal launch configuration (error " + std::to_string(++number) + ")";
    return;
  }
  block().prepare(grid, size, permutation(static_cast<int64_t>(threads)), body);
  for (const int i : permutation(static_cast<int64_t>(blocks))) {
    block().run({i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)});
    if (!block().failed()) continue;
    block_pointer() = std::make_unique<Block>();  // fibers of the failed block are stuck
    return;
  }
}

}  // namespace emulation
