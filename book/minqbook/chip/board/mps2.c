/* Arm's MPS2 board with a Cortex-M3 (AN385) or M4 (AN386), as QEMU emulates it: the first
   instruction, files of the host by semihosting, a timer, and how deep the stack went. */
#include "board.h"

extern uint32_t stack_top, data_start, data_end, data_stored, bss_start, bss_end;
int main(void);

enum { OPEN = 1, WRITE0 = 4, WRITE = 5, READ = 6, EXIT = 0x20 };

/* A request to the debugger, here QEMU: a number, and the address of its arguments. */
static int32_t ask(uint32_t what, const void *arguments)
{
    register uint32_t r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

static int32_t opened(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    return ask(OPEN, arguments);
}

int board_read(void *into, uint32_t bytes)
{
    static int32_t file = -1;
    if (file < 0)
        file = opened("input.bin", 9, 1);
    const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)into, bytes};
    return ask(READ, arguments) == 0;
}

void board_write(const void *from, uint32_t bytes)
{
    static int32_t file = -1;
    if (file < 0)
        file = opened("output.bin", 10, 5);
    const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)from, bytes};
    ask(WRITE, arguments);
}

static void print(uint32_t value, char end)
{
    char text[12], *p = text + 11;
    *p = 0;
    *--p = end;
    do
        *--p = (char)('0' + value % 10);
    while (value /= 10);
    ask(WRITE0, p);
}

/* The board's first timer counts down at 25 MHz. With -icount shift=0 an instruction takes a
   nanosecond, so a tick is 40 instructions. */
#define TIMER ((volatile uint32_t *)0x40000000)

static uint32_t *painted_to;

void board_begin(void)
{
    __asm__ volatile("mov %0, sp" : "=r"(painted_to));
    for (volatile uint32_t *p = &bss_end; p < painted_to; p++) /* not memset, which has a stack */
        *p = 0xA5A5A5A5;
    TIMER[0] = 0;
    TIMER[2] = 0xFFFFFFFF;
    TIMER[1] = 0xFFFFFFFF;
    TIMER[0] = 1;
}

void board_end(void)
{
    const uint32_t ticks = 0xFFFFFFFF - TIMER[1];
    const uint32_t *p = &bss_end;
    while (p < painted_to && *p == 0xA5A5A5A5)
        p++;
    print(ticks, ' ');
    print((uint32_t)(painted_to - p) * 4, '\n');
}

void reset(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* switches the floating-point unit on */
    __asm__ volatile("dsb\nisb");
#endif
    const uint32_t *from = &data_stored;
    for (uint32_t *to = &data_start; to < &data_end;)
        *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;)
        *to++ = 0;
    const uint32_t done[2] = {0x20026, (uint32_t)main()};
    ask(EXIT, done);
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, /* after power-on: the stack, then the first instruction */
};
