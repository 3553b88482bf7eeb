/* The byte stream over USART2 of an STM32F446, which on a NUCLEO-F446RE is the USB serial port of its debugger.
 * Registers as in STMicroelectronics RM0390. The clock stays as it is after reset: HSI, 16 MHz. The other file that a
 * real board replaces is firmware/flash.c: that one drives the emulator's flash controller. */
#include "port.h"

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define RCC_AHB1ENR REGISTER(0x40023830u)
#define RCC_APB1ENR REGISTER(0x40023840u)
#define GPIOA_MODER REGISTER(0x40020000u)
#define GPIOA_AFRL REGISTER(0x40020020u)
#define USART2_SR REGISTER(0x40004400u)
#define USART2_DR REGISTER(0x40004404u)
#define USART2_BRR REGISTER(0x40004408u)
#define USART2_CR1 REGISTER(0x4000440Cu)
#define USART2_CR3 REGISTER(0x40004414u)
#define DMA1_S5CR REGISTER(0x40026088u) /* stream 5, channel 4: what USART2 receives */
#define DMA1_S5NDTR REGISTER(0x4002608Cu)
#define DMA1_S5PAR REGISTER(0x40026090u)
#define DMA1_S5M0AR REGISTER(0x40026094u)
#define DEMCR REGISTER(0xE000EDFCu)
#define DWT_CTRL REGISTER(0xE0001000u)
#define DWT_CYCCNT REGISTER(0xE0001004u)
#define SCB_AIRCR REGISTER(0xE000ED0Cu)

enum {
    CLOCK_HZ = 16000000,
    BAUD = 115200,
    RING = 256, /* bytes; a power of two */
    SR_TXE = 1 << 7
};

/* The DMA writes what arrives, round and round, while the firmware computes. */
static volatile uint8_t ring[RING];
static uint32_t taken; /* position in ring of the next byte to read */
static uint32_t cycles_before, wraps;

void port_open(void)
{
    RCC_AHB1ENR |= 1u << 0 | 1u << 21; /* GPIOA, DMA1 */
    RCC_APB1ENR |= 1u << 17;           /* USART2 */
    (void)RCC_APB1ENR;                 /* the clock runs two cycles after the write */
    GPIOA_AFRL = (GPIOA_AFRL & ~0xFF00u) | 0x7700u; /* PA2, PA3: alternate function 7 */
    GPIOA_MODER = (GPIOA_MODER & ~0xF0u) | 0xA0u;
    DMA1_S5PAR = 0x40004404u;
    DMA1_S5M0AR = (uint32_t)(uintptr_t)ring;
    DMA1_S5NDTR = RING;
    DMA1_S5CR = 4u << 25 | 1u << 10 | 1u << 8 | 1u; /* channel 4, next byte each time, circular, on */
    USART2_BRR = (CLOCK_HZ + BAUD / 2) / BAUD;
    USART2_CR3 = 1u << 6;                      /* DMA for what is received */
    USART2_CR1 = 1u << 13 | 1u << 3 | 1u << 2; /* on, transmit, receive */
    DEMCR |= 1u << 24;
    DWT_CTRL |= 1u;
}

int port_read(uint8_t *data, uint32_t length)
{
    while (length) {
        const uint32_t filled = (RING - DMA1_S5NDTR) % RING;
        for (; taken != filled && length; length--) {
            *data++ = ring[taken];
            taken = (taken + 1) % RING;
        }
    }
    return 0;
}

void port_write(const uint8_t *data, uint32_t length)
{
    for (; length; length--) {
        while (!(USART2_SR & SR_TXE))
            continue;
        USART2_DR = *data++;
    }
}

/* Cycles of the core, right as long as it is asked once in every 2^32 of them. */
uint64_t port_ticks(void)
{
    const uint32_t now = DWT_CYCCNT;
    wraps += now < cycles_before;
    cycles_before = now;
    return (uint64_t)wraps << 32 | now;
}

/* Nothing is left to do but to start again. */
void port_exit(int status)
{
    (void)status;
    SCB_AIRCR = 0x5FA0004u;
    for (;;)
        continue;
}
