/* Answers the `cpuid` instructions that limited_isa.py marked, less what the profile lacks.

   Preloaded into the processes of the peers. KEPT_* are set on the compiler's command line. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

/* The mark in place of 0F A2: AAA, which is invalid in 64-bit code and which no compiler emits. */
static const unsigned char MARK[2] = {0x37, 0xA2};

static void answer(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX];
    unsigned a, b, c, d;
    (void)info;
    if (code[0] != MARK[0] || code[1] != MARK[1]) {
        signal(number, SIG_DFL); /* a fault of its own: it comes again, and ends the process */
        return;
    }
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7) {
        a &= part == 0 ? ~0u : part == 1 ? KEPT_7_1_EAX : 0;
        b &= part == 0 ? KEPT_7_0_EBX : 0;
        c &= part == 0 ? KEPT_7_0_ECX : 0; /* AVX-512 beyond its first parts */
        d = 0;                             /* AVX-VNNI-INT8, AMX, AVX10 */
    } else if (leaf > 0x1C && leaf < 0x80000000u) {
        a = b = c = d = 0; /* the sizes of AMX, the version of AVX10 */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += sizeof MARK;
}

__attribute__((constructor)) static void install(void)
{
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, 0);
}
