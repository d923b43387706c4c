/* A team of threads that go through a step together and wait for each other between its parts. */
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

extern int omp_get_thread_num(void), omp_get_num_threads(void);

#define SPINS 1000

typedef struct { atomic_int waiting, asleep, turn; } Gate;
typedef struct { int number, count; Gate *gate; } Team;

/* Wait for the others: awake for some microseconds, which is what most waits take, then asleep. OpenMP's own barrier
 * sleeps at once, which costs more than most of what lies between two. */
static void meet(Team team) {
    if (team.count == 1) return;
    Gate *gate = team.gate;
    int turn = atomic_load(&gate->turn);
    if (atomic_fetch_add(&gate->waiting, 1) == team.count - 1) {
        atomic_store(&gate->waiting, 0);
        atomic_store(&gate->turn, turn + 1);
        if (atomic_load(&gate->asleep)) syscall(SYS_futex, &gate->turn, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
        return;
    }
    for (int tries = 0; tries < SPINS; tries++) {
        if (atomic_load(&gate->turn) != turn) return;
        __builtin_ia32_pause();
    }
    atomic_fetch_add(&gate->asleep, 1);
    while (atomic_load(&gate->turn) == turn) syscall(SYS_futex, &gate->turn, FUTEX_WAIT_PRIVATE, turn, 0, 0, 0);
    atomic_fetch_sub(&gate->asleep, 1);
}

INLINE long part(long size, Team team, int number) { return size * number / team.count; }
