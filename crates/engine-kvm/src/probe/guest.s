# A guest that tries what stock kernels need, and says a letter after each.
# It is loaded at 0x8000 and starts there in real mode. Its host has prepared page
# tables at 0x10000 and 0x14000, which differ at 4 MiB, and an IDT at 0x1a000.

.macro say letter
    movb $\letter, %al
    outb %al, $0xe9
.endm

.section .rodata.guise_probe, "a"
.balign 16
.globl guise_probe_start
.globl guise_probe_on_int3
.globl guise_probe_on_timer
.globl guise_probe_end

guise_probe_start:
.code16
    cli
    say 'r'
    lgdtl (guise_probe_gdtr - guise_probe_start + 0x8000)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(guise_probe_32 - guise_probe_start + 0x8000)

.code32
guise_probe_32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    say 'p'
    # PAE, OSFXSR, OSXMMEXCPT; then long mode and paging.
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $0x10000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0xfffffffb, %eax
    orl $0x80000002, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(guise_probe_64 - guise_probe_start + 0x8000)

.code64
guise_probe_64:
    movl $0x7000, %esp
    lidt 0x1a800
    say 'l'
    movl $10000, %ecx
1:  decl %ecx
    jnz 1b
    say 'v'

    # MSRs: the two GS bases change places.
    movl $0xc0000102, %ecx
    movl $0x1234, %eax
    xorl %edx, %edx
    wrmsr
    swapgs
    movl $0xc0000101, %ecx
    rdmsr
    cmpl $0x1234, %eax
    jne guise_probe_wrong
    say 'm'

    # CMPXCHG16B with equal, then with unequal contents.
    xorl %eax, %eax
    xorl %edx, %edx
    movl $5, %ebx
    movl $6, %ecx
    movl $0x30000, %edi
    lock cmpxchg16b (%rdi)
    jnz guise_probe_wrong
    cmpq $6, 8(%rdi)
    jne guise_probe_wrong
    lock cmpxchg16b (%rdi)
    jz guise_probe_wrong
    cmpq $5, %rax
    jne guise_probe_wrong
    say 'c'

    xorl %ebp, %ebp
    int3
    cmpl $1, %ebp
    jne guise_probe_wrong
    say 'b'

    # SSE: 3 + 4 and 3 * 4 as floats.
    movl $3, %eax
    cvtsi2ss %eax, %xmm0
    movl $4, %eax
    cvtsi2ss %eax, %xmm1
    movaps %xmm0, %xmm2
    addss %xmm1, %xmm0
    mulss %xmm1, %xmm2
    addss %xmm2, %xmm0
    cvttss2si %xmm0, %eax
    cmpl $19, %eax
    jne guise_probe_wrong
    say 's'

    # XSAVE, if there is one: what is saved comes back.
    movl $1, %eax
    cpuid
    btl $26, %ecx
    jnc 2f
    movq %cr4, %rax
    btsq $18, %rax
    movq %rax, %cr4
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $3, %eax
    xsetbv
    movl $0x31000, %edi
    xsave (%rdi)
    xorps %xmm0, %xmm0
    movl $3, %eax
    xorl %edx, %edx
    xrstor (%rdi)
    cvttss2si %xmm0, %eax
    cmpl $19, %eax
    jne guise_probe_wrong
2:  say 'x'

    # Another address space shows another page, and back.
    cmpq $0x20000, 0x400000
    jne guise_probe_wrong
    movl $0x14000, %eax
    movq %rax, %cr3
    cmpq $0x21000, 0x400000
    jne guise_probe_wrong
    movl $0x10000, %eax
    movq %rax, %cr3
    cmpq $0x20000, 0x400000
    jne guise_probe_wrong
    say 't'

    # The local APIC's timer, once.
    movl $0xfee00000, %edi
    movl $0x1ff, 0xf0(%rdi)
    movl $0xb, 0x3e0(%rdi)
    movl $0x40, 0x320(%rdi)
    xorl %ebp, %ebp
    movl $10000, 0x380(%rdi)
3:  sti
    hlt
    cli
    testl %ebp, %ebp
    jz 3b
    say 'i'
    say 'z'
    hlt

guise_probe_wrong:
    outb %al, $0xf4
    hlt

guise_probe_on_int3:
    incl %ebp
    iretq

guise_probe_on_timer:
    incl %ebp
    movl $0, 0xb0(%rdi)
    iretq

.balign 8
guise_probe_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
guise_probe_gdtr:
    .word guise_probe_gdtr - guise_probe_gdt - 1
    .long guise_probe_gdt - guise_probe_start + 0x8000
guise_probe_end:
.previous
