// Stacks of fibers, and switching between them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

struct Stack {
  char* bottom;
  size_t size;
};

// Stack number n. Stacks are kept for the life of the process. Below each lies a guard page.
inline Stack& stack(size_t n) {
  static std::vector<Stack> stacks;
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t size = 256 << 10;
#else
  constexpr size_t size = 64 << 10;
#endif
  while (stacks.size() <= n) {
    const size_t guard = static_cast<size_t>(getpagesize());
    void* memory = mmap(nullptr, guard + size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) throw std::bad_alloc();
    // Different offsets: otherwise all stacks would use the same sets of the cache.
    const size_t offset = stacks.size() % 48 * 64;
    stacks.push_back({static_cast<char*>(memory) + guard, size - offset});
  }
  return stacks[n];
}

// State of a fiber that does not run.
struct Context {
#ifdef __x86_64__
  void* stack_pointer;
#else
  ucontext_t registers;
#endif
  Stack stack{};
};

#ifdef __x86_64__
// Faster than swapcontext, which saves the signal mask by a system call.
__attribute__((naked, noinline)) inline void switch_stack(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

// Makes `context` start with entry() on the stack. entry() must not return.
inline void prepare(Context& context, const Stack& stack, void (*entry)()) {
  context.stack = stack;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack.bottom, stack.size);  // an abandoned fiber may have left it poisoned
#endif
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(stack.bottom + stack.size);
  *--top = nullptr;  // return address of entry
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
#else
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack.bottom;
  context.registers.uc_stack.ss_size = stack.size;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
#endif
}

// Called first on a new stack. Sets the stack of `from` if it is unknown.
inline void arrived([[maybe_unused]] void* fake_stack, [[maybe_unused]] Context* from) {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
  if (from && !from->stack.bottom) from->stack = {static_cast<char*>(const_cast<void*>(bottom)), size};
#endif
}

inline void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack, to.stack.bottom, to.stack.size);
#endif
#ifdef __x86_64__
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.registers, &to.registers);
#endif
  arrived(fake_stack, nullptr);
}

}  // namespace emulation
