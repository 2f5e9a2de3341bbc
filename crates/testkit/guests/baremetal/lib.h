/* What bare-metal guests share: ports, text on the serial port, interrupts, the
   local APIC, ACPI, and ways to end. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

/* Configuration space of the PCI device in a slot. */
static inline void config_select(u32 slot, u32 at) { outl(0xcf8, 1u << 31 | slot << 11 | (at & 0xfc)); }
static inline u32 config_read(u32 slot, u32 at) { config_select(slot, at); return inl(0xcfc); }
static inline void config_write(u32 slot, u32 at, u32 value) { config_select(slot, at); outl(0xcfc, value); }
/* Where a capability begins, or 0. */
static inline u32 find_capability(u32 slot, u8 id)
{
	u32 at = config_read(slot, 0x34) & 0xff;
	while (at && (config_read(slot, at) & 0xff) != id)
		at = config_read(slot, at) >> 8 & 0xff;
	return at;
}

static inline u64 read_msr(u32 number)
{
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (u64)high << 32 | low;
}
static inline void write_msr(u32 number, u64 value)
{
	asm volatile("wrmsr" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(number));
}
static inline u64 read_tsc(void)
{
	u32 low, high;
	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}
static inline void cpuid(u32 leaf, u32 r[4])
{
	asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}
static inline void enable_interrupts(void) { asm volatile("sti"); }
static inline void disable_interrupts(void) { asm volatile("cli"); }
/* Halts with interrupts on, unless the condition already holds. */
#define WAIT_UNTIL(condition)                            \
	do {                                             \
		disable_interrupts();                    \
		if (condition)                           \
			break;                           \
		asm volatile("sti; hlt" : : : "memory"); \
	} while (1)

void print(const char *text);
void print_number(const char *label, u64 value);
void print_hex(const char *label, u64 value);
/* Ends the guest; the exit code of the host's process is 2 * code + 1. */
void leave(u32 code) __attribute__((noreturn));
void power_off(void) __attribute__((noreturn));
void fail(const char *what) __attribute__((noreturn));

/* Handlers are functions with the `interrupt` attribute. */
void set_handler(u8 vector, void *handler);
/* Its interrupts use this stack of the task state segment. */
void set_interrupt_stack(u8 vector, u8 stack);
/* User mode may raise it. */
void allow_users(u8 vector);
void load_idt(void *pointer);

#define LOCAL_APIC 0xfee00000ul
#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_EOI 0xb0
#define APIC_SPURIOUS 0xf0
#define APIC_REQUEST 0x200
#define APIC_COMMAND 0x300
#define APIC_COMMAND_HIGH 0x310
#define APIC_TIMER 0x320
#define APIC_INITIAL 0x380
#define APIC_CURRENT 0x390
#define APIC_DIVIDE 0x3e0
static inline u32 apic_read(u32 at) { return *(volatile u32 *)(LOCAL_APIC + at); }
static inline void apic_write(u32 at, u32 value) { *(volatile u32 *)(LOCAL_APIC + at) = value; }
void apic_enable(void);

/* The table with this signature, or 0. */
u8 *acpi_table(const char *signature);
/* How many processors the MADT lists. */
u32 processor_count(void);

#define PIT_HZ 1193182
void pit_periodic(u32 hertz);
void pic_init(u8 unmasked);

extern u64 page_root[512];
extern u32 boot_magic, boot_info, ap_running, ap_stack;
extern u8 trampoline[], trampoline_end[];
u64 in_compatibility_mode(void);
u64 in_real_mode(void);
