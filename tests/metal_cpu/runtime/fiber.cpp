#include "fiber.h"

#include <stdlib.h>
#include <sys/mman.h>

namespace mtl {
char *stacks() {
  static char *base = [] {
    void *p = mmap(nullptr, stacks_size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    for (int i = 0; i < max_lanes; i++) {
      mprotect(static_cast<char *>(p) + i * stack_size, stack_guard, PROT_NONE);
    }
    return static_cast<char *>(p);
  }();
  return base;
}

void *top_of(int lane) {
  size_t stagger = (lane % 32) * 576;
  return stacks() + (lane + 1) * stack_size - top_room - stagger;
}

#if defined(__x86_64__)
__asm__(R"(
  .text
  .p2align 4
mtl_switch_asm:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
__asm__(R"(
  .text
  .p2align 4
mtl_switch_asm:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  ldr x9, [x1]
  mov sp, x9
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#endif

#if defined(__x86_64__) || defined(__aarch64__)
void switch_asm(context *from, context *to) __asm__("mtl_switch_asm");

void switch_context(context *from, context *to) { switch_asm(from, to); }

void prepare(context *c, int lane, void (*start)()) {
  auto *sp = static_cast<uintptr_t *>(top_of(lane));
#if defined(__x86_64__)
  sp -= 1;  // a called function finds the stack 8 bytes off a multiple of 16
  *--sp = reinterpret_cast<uintptr_t>(start);
  sp -= 6;
#else
  sp -= 20;
  sp[11] = reinterpret_cast<uintptr_t>(start);  // x30
#endif
  *c = sp;
}
#else
void switch_context(context *from, context *to) { swapcontext(from, to); }

void prepare(context *c, int lane, void (*start)()) {
  getcontext(c);
  char *bottom = stacks() + lane * stack_size + stack_guard;
  c->uc_stack.ss_sp = bottom;
  c->uc_stack.ss_size = static_cast<char *>(top_of(lane)) - bottom;
  c->uc_link = nullptr;
  makecontext(c, start, 0);
}
#endif
}  // namespace mtl
