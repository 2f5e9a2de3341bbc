/* From a boot loader's 32-bit entry to main() in long mode. The first 4 GiB are
   mapped to themselves with large pages. The same file serves as a multiboot
   kernel and, with PVH defined, as a PVH kernel. */

	.section .boot, "ax"
	.code32
	.align 4
multiboot_header:
	.long 0x1badb002, 0x3, -(0x1badb002 + 0x3)

	.globl start
start:
	cli
	cld
	mov %eax, boot_magic
	mov %ebx, boot_info
	mov $stack_top, %esp

	/* Page tables: one root, one table of pointers, four directories. */
	mov $page_root, %edi
	lea page_pointers, %eax
	or $3, %eax
	mov %eax, (%edi)
	mov $page_pointers, %edi
	mov $page_directories + 3, %eax
	mov $4, %ecx
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 1b
	mov $page_directories, %edi
	mov $0x83, %eax
	mov $2048, %ecx
2:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 2b

	call enter_long_mode
	/* Does not return here: the far jump below does the rest. */

	/* Needs %esp; every processor comes through here. */
	.globl enter_long_mode
enter_long_mode:
	mov $page_root, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x900, %eax
	wrmsr
	lgdt gdt_pointer
	mov %cr0, %eax
	and $~0x60000000, %eax
	or $0x80010001, %eax
	mov %eax, %cr0
	ljmp $0x08, $long_entry

	.code64
long_entry:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	mov %esp, %esp
	cmpl $0, ap_running
	jne 3f
	call main
	mov %eax, %edi
	call leave
3:	call ap_main
4:	hlt
	jmp 4b

	.section .text
	.globl load_idt
load_idt:
	lidt (%rdi)
	ret

/* Where application processors begin, in real mode, after being copied below
   1 MiB: %cs is the segment that the start-up IPI names. */
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	cld
	mov %cs, %ax
	mov %ax, %ds
	lgdtl trampoline_gdt - trampoline
	mov %cr0, %eax
	or $1, %eax
	and $~0x60000000, %eax
	mov %eax, %cr0
	ljmpl $0x18, $trampoline_32
	.align 8
trampoline_gdt:
	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.code32
trampoline_32:
	mov $0x20, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	/* A stack for each: they come one after the other. */
	mov ap_stack, %esp
	movl $1, ap_running
	jmp enter_long_mode

/* uint64_t in_compatibility_mode(void): runs a few instructions of 32-bit code in
   long mode and tells what they saw. */
	.code64
	.globl in_compatibility_mode
in_compatibility_mode:
	push %rbx
	pushq $0x18
	lea 1f(%rip), %rax
	push %rax
	lretq
	.code32
1:	/* 0x40+0x48 is INC EAX, DEC EAX here and a REX prefix in 64-bit mode. */
	mov $7, %eax
	.byte 0x40
	.byte 0x40
	mov %eax, %ebx
	mov %cs, %ecx
	ljmp $0x08, $2f
	.code64
2:	mov %ebx, %eax
	shl $8, %ecx
	or %ecx, %eax
	pop %rbx
	ret

/* uint64_t in_real_mode(void): leaves long mode for real mode, has interrupt 0x40
   served through the vector table at address zero, and comes back. */
	.globl in_real_mode
in_real_mode:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, saved_stack
	sidt saved_idt
	/* The code that runs in real mode goes below 64 KiB. */
	lea real_code(%rip), %rsi
	mov $0x6000, %edi
	mov $real_code_end - real_code, %ecx
	rep movsb
	pushq $0x18
	lea 1f(%rip), %rax
	push %rax
	lretq
	.code32
1:	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov $0xc0000080, %ecx
	rdmsr
	and $~0x100, %eax
	wrmsr
	lidt real_idt
	mov $0x30, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	ljmp $0x28, $0x6000

	.code16
real_code:
	mov %cr0, %eax
	and $~1, %al
	mov %eax, %cr0
	ljmpl $0, $0x6000 + real_flat - real_code
real_flat:
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x5ff0, %sp
	/* Interrupt vector 0x40. */
	movw $0x6000 + real_handler - real_code, 0x100
	movw $0, 0x102
	mov $0x1111, %ax
	int $0x40
	/* A segment beyond the first 64 KiB, as only real mode computes addresses. */
	mov $0x2000, %bx
	mov %bx, %ds
	movw $0x5a5a, 0x10
	mov $0x2001, %bx
	mov %bx, %ds
	mov 0, %dx
	xor %bx, %bx
	mov %bx, %ds
	lgdtl %cs:0x6000 + real_gdt - real_code
	mov %ax, %si
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x18, $back_in_32
real_handler:
	add $0x2222, %ax
	iret
	.align 4
real_gdt:
	.word gdt_end - gdt - 1
	.long gdt
real_code_end:

	.code32
back_in_32:
	mov $0x20, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	movzwl %si, %esi
	movzwl %dx, %edx
	mov $0xc0000080, %ecx
	mov %edx, %edi
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $0x08, $back_in_64
	.code64
back_in_64:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov saved_stack, %rsp
	lidt saved_idt
	mov %edi, %eax
	shl $16, %rax
	or %rsi, %rax
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

	.section .data
	.align 16
	/* Null; 64-bit code and data; 32-bit code and data; 16-bit code and data. */
gdt:	.quad 0
	.quad 0x00af9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00009b000000ffff
	.quad 0x000093000000ffff
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
real_idt:
	.word 0x3ff
	.quad 0
	.align 8
saved_idt:
	.skip 16
saved_stack:
	.quad 0
	.globl boot_magic, boot_info, ap_running, ap_stack
boot_magic:
	.long 0
boot_info:
	.long 0
ap_running:
	.long 0
ap_stack:
	.long 0

	.section .bss
	.align 4096
	.globl page_root
page_root:
	.skip 4096
page_pointers:
	.skip 4096
page_directories:
	.skip 4 * 4096
	.skip 16384
stack_top:

#ifdef PVH
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18
	.asciz "Xen"
	.long start
#endif
