// Stops a launch: memory faults, trapped instructions (array bounds, shifts, division by zero) and
// the time limit become an issue with the place in the kernel, and control returns to mtl_run.
//
// The limit counts processor time of the process.  Signals that do not concern the launching
// thread go to it or to whoever handled them before.
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>

#include "state.h"

namespace mtl {
namespace {
sigjmp_buf home;
pthread_t launcher;
volatile bool running;
const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGVTALRM};
constexpr int n_caught = sizeof caught / sizeof *caught;
struct sigaction before[n_caught];

uintptr_t pc_of(void *context) {
  auto *u = static_cast<ucontext_t *>(context);
#if defined(__x86_64__) && defined(__linux__)
  return u->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__) && defined(__linux__)
  return u->uc_mcontext.pc;
#elif defined(__aarch64__) && defined(__APPLE__)
  return u->uc_mcontext->__ss.__pc;
#else
  (void)u;
  return 0;
#endif
}

void on_signal(int number, siginfo_t *info, void *context) {
  if (!running || !pthread_equal(pthread_self(), launcher)) {
    if (number == SIGVTALRM) {
      if (running) pthread_kill(launcher, number);
      return;
    }
    signal(number, SIG_DFL);  // faults again, and ends the process
    return;
  }
  uint32_t kind = number == SIGVTALRM ? issue_timeout : issue_trap;
  uint64_t pc = code_offset(pc_of(context));
  if (!pc) pc = code_offset(S.last - 1);  // stopped in the runtime or a library
  auto &issue = report(kind, pc, 0, 0, 0);
  issue.size = number;
  issue.offset = reinterpret_cast<intptr_t>(info->si_addr);
  siglongjmp(home, 2);
}

void set_timer(double seconds) {
  itimerval t;
  memset(&t, 0, sizeof t);
  t.it_value.tv_sec = long(seconds);
  t.it_value.tv_usec = long((seconds - double(long(seconds))) * 1e6);
  setitimer(ITIMER_VIRTUAL, &t, nullptr);
}
}  // namespace

void leave(int status) { siglongjmp(home, status + 1); }

int guarded(void (*run)()) {
  static char *alternate = static_cast<char *>(malloc(1 << 16));
  stack_t mine, old;
  memset(&mine, 0, sizeof mine);
  mine.ss_sp = alternate;
  mine.ss_size = 1 << 16;
  sigaltstack(&mine, &old);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < n_caught; i++) sigaction(caught[i], &action, &before[i]);
  launcher = pthread_self();
  int jumped = sigsetjmp(home, 1);
  if (!jumped) {
    running = true;
    set_timer(S.launch->timeout);
    run();
  }
  running = false;
  watching = false;
  set_timer(0);
  for (int i = 0; i < n_caught; i++) sigaction(caught[i], &before[i], nullptr);
  if (!(old.ss_flags & SS_ONSTACK)) sigaltstack(&old, nullptr);
  return jumped ? jumped - 1 : 0;
}
}  // namespace mtl
