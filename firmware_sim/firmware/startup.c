/* From reset to main, and the stack's high-water mark. The stack lies at the bottom of RAM, so that an overflow runs
 * below RAM and faults on a board too, where above .bss it would quietly overwrite the arena. */
#include "startup.h"

#include <stddef.h>

#include "port.h"

/* 4 is single precision, 8 double; 2, half precision, is of no use here. */
#if (__ARM_FP & 12) != ENTROPI_FPU
#error "the compiler was told of another FPU than this core has"
#endif

#define CPACR ((volatile uint32_t *)0xE000ED88u)
#define CPACR_FULL_FPU (0xFu << 20)
#define PAINT 0xA5A5A5A5u

/* Set by link.ld; the addresses are the values. */
extern uint32_t stack_bottom[], stack_top[], data_start[], data_end[], bss_start[], bss_end[];
extern const uint32_t data_load[];

int main(void);

/* Volatile, because a call to memset here would be painted over itself. */
static void paint_stack(void)
{
    uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (volatile uint32_t *word = stack_bottom; word < top; word++)
        *word = PAINT;
}

void Reset_Handler(void)
{
#if ENTROPI_FPU
    *CPACR |= CPACR_FULL_FPU;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    paint_stack();
    for (size_t i = 0; data_start + i < data_end; i++)
        data_start[i] = data_load[i];
    for (uint32_t *word = bss_start; word < bss_end; word++)
        *word = 0;
    port_exit(main());
}

static void Fault_Handler(void)
{
    port_exit(1);
}

uint32_t startup_stack_bytes(void)
{
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)stack_bottom);
}

uint32_t startup_stack_used(void)
{
    const volatile uint32_t *word = stack_bottom;
    while (word < stack_top && *word == PAINT)
        word++;
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)word);
}

/* The 16 exceptions of the architecture; no interrupt is ever enabled. */
__attribute__((section(".vectors"), used)) void (*const vectors[16])(void) = {
    (void (*)(void))(uintptr_t)stack_top,
    Reset_Handler,
    Fault_Handler, /* NMI */
    Fault_Handler, /* HardFault */
    Fault_Handler, /* MemManage */
    Fault_Handler, /* BusFault */
    Fault_Handler, /* UsageFault */
    NULL,
    NULL,
    NULL,
    NULL,
    Fault_Handler, /* SVCall */
    Fault_Handler, /* DebugMonitor */
    NULL,
    Fault_Handler, /* PendSV */
    Fault_Handler, /* SysTick */
};
