//! The last step into a container: a page of machine code in a sealed memfd.
//!
//! Between joining the container and executing its program, the process must
//! not be one whose `/proc/self/exe` is the runtime's own binary: a container
//! that makes its entry point `#!/proc/self/exe` would otherwise run that binary
//! with its own libraries, keep a descriptor of it and overwrite it on the host
//! (CVE-2019-5736). Copying the whole binary into a memfd for each start costs
//! milliseconds. So the process executes a *trampoline* first: an ELF image of
//! a few hundred bytes, made here, that holds the program's path, arguments,
//! environment and seccomp filter, installs the filter and executes the
//! program. `/proc/self/exe` is then that memfd, sealed against writing.
//!
//! Where it can, the trampoline loads the filter, because it is the last thing
//! before the program: the profile then needs to allow nothing that the runtime
//! does. Without no_new_privs loading takes a privilege that may have to be gone
//! before the trampoline; it then runs under the filter and makes one system
//! call, the `execve` that the program needs to be allowed anyway.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};

use super::check;
use super::seccomp::Instruction;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the trampoline into a container is written for x86-64");

// The stack holds the argument count. An interpreter line leads to more than
// one argument, which is how an execution of /proc/self/exe from inside is told
// from ours. System calls: fcntl 72, seccomp 317, execve 59, write 1,
// exit_group 231. What failed is reported as a negative errno on the descriptor,
// unless that is negative.
std::arch::global_asm!(
    ".pushsection .rodata.guise_trampoline, \"a\", @progbits",
    ".balign 8",
    ".globl guise_trampoline_start",
    ".hidden guise_trampoline_start",
    "guise_trampoline_start:",
    "cmp qword ptr [rsp], 1",
    "jne 3f",
    "lea rbx, [rip + guise_trampoline_parameters]",
    "mov rdi, [rbx + 24]",
    "test rdi, rdi",
    "js 5f",
    "mov eax, 72",
    "mov esi, 2",
    "mov edx, 1",
    "syscall",
    "5:",
    "mov rdx, [rbx + 32]",
    "test rdx, rdx",
    "jz 2f",
    "mov eax, 317",
    "mov edi, 1",
    "mov rsi, [rbx + 40]",
    "syscall",
    "test rax, rax",
    "js 4f",
    "2:",
    "mov eax, 59",
    "mov rdi, [rbx]",
    "mov rsi, [rbx + 8]",
    "mov rdx, [rbx + 16]",
    "syscall",
    "4:",
    "push rax",
    "mov rdi, [rbx + 24]",
    "test rdi, rdi",
    "js 3f",
    "mov eax, 1",
    "mov rsi, rsp",
    "mov edx, 8",
    "syscall",
    "3:",
    "mov edi, 126",
    "mov eax, 231",
    "syscall",
    "ud2",
    ".balign 8",
    ".globl guise_trampoline_parameters",
    ".hidden guise_trampoline_parameters",
    "guise_trampoline_parameters:",
    ".skip 48",
    ".globl guise_trampoline_end",
    ".hidden guise_trampoline_end",
    "guise_trampoline_end:",
    ".popsection",
);

unsafe extern "C" {
    static guise_trampoline_start: u8;
    static guise_trampoline_parameters: u8;
    static guise_trampoline_end: u8;
}

/// What the trampoline ends in.
pub struct Program<'a> {
    /// The executable, as the container names it.
    pub path: &'a CString,
    pub args: &'a [CString],
    pub env: &'a [CString],
    /// The seccomp filter and its flags.
    pub filter: Option<(&'a [Instruction], u64)>,
    /// Where a failure is reported; closed by a success. Without it a failure
    /// is the status 126.
    pub report: Option<BorrowedFd<'a>>,
}

/// Where the image is loaded.
const BASE: u64 = 0x1000_0000;
const HEADERS: usize = 64 + 2 * 56;

/// The code, and where in it the parameters start.
fn code() -> (&'static [u8], usize) {
    // SAFETY: the three symbols are defined above in this order in one section
    // of constant data, so the range between the first and the last is readable.
    unsafe {
        let start = &raw const guise_trampoline_start;
        let end = &raw const guise_trampoline_end;
        let parameters = &raw const guise_trampoline_parameters;
        let length = end.offset_from(start) as usize;
        (std::slice::from_raw_parts(start, length), parameters.offset_from(start) as usize)
    }
}

/// The trampoline as an ELF executable.
fn image(program: &Program<'_>) -> Vec<u8> {
    let (code, parameters) = code();
    let mut image = vec![0u8; HEADERS];
    image.extend_from_slice(code);
    let text = |image: &mut Vec<u8>, string: &CString| {
        let at = BASE + image.len() as u64;
        image.extend_from_slice(string.as_bytes_with_nul());
        at
    };
    let path = text(&mut image, program.path);
    let args: Vec<u64> = program.args.iter().map(|a| text(&mut image, a)).collect();
    let env: Vec<u64> = program.env.iter().map(|e| text(&mut image, e)).collect();
    let vector = |image: &mut Vec<u8>, pointers: &[u64]| {
        image.resize(image.len().next_multiple_of(8), 0);
        let at = BASE + image.len() as u64;
        for pointer in pointers.iter().chain(&[0]) {
            image.extend_from_slice(&pointer.to_le_bytes());
        }
        at
    };
    let argv = vector(&mut image, &args);
    let envp = vector(&mut image, &env);
    let (filter, flags) = match program.filter {
        None => (0, 0),
        Some((instructions, flags)) => {
            let at = BASE + image.len() as u64;
            for i in instructions {
                image.extend_from_slice(&i.code.to_le_bytes());
                image.extend_from_slice(&[i.jt, i.jf]);
                image.extend_from_slice(&i.k.to_le_bytes());
            }
            (vector(&mut image, &[instructions.len() as u64, at]), flags)
        }
    };
    let report = program.report.map_or(-1, |fd| i64::from(fd.as_raw_fd())) as u64;
    for (i, value) in [path, argv, envp, report, filter, flags].into_iter().enumerate() {
        let at = HEADERS + parameters + 8 * i;
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let size = image.len() as u64;
    image[..HEADERS].copy_from_slice(&headers(size));
    image
}

/// ELF header and two program headers: the image, readable and executable, and
/// a stack that is not executable.
fn headers(size: u64) -> [u8; HEADERS] {
    let mut bytes = Vec::with_capacity(HEADERS);
    bytes.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let (executable, x86_64, version) = (2u16, 62u16, 1u32);
    bytes.extend_from_slice(&executable.to_le_bytes());
    bytes.extend_from_slice(&x86_64.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    for value in [BASE + HEADERS as u64, 64, 0] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(&0u32.to_le_bytes());
    for value in [64u16, 56, 2, 64, 0, 0] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    let (load, gnu_stack) = (1u32, 0x6474_e551u32);
    let (read_execute, read_write) = (5u32, 6u32);
    for (kind, flags, address, length) in
        [(load, read_execute, BASE, size), (gnu_stack, read_write, 0, 0)]
    {
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        for value in [0, address, address, length, length, 0x1000] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
    let mut headers = [0; HEADERS];
    headers.copy_from_slice(&bytes);
    headers
}

/// A trampoline that is ready to be executed.
pub struct Trampoline(OwnedFd);

impl Trampoline {
    /// Makes and seals the image.
    pub fn new(program: &Program<'_>) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let exec = MemfdFlags::from_bits_retain(libc::MFD_EXEC);
        let memfd = match rustix::fs::memfd_create(c"guise-init", flags | exec) {
            // Kernels before 6.3 do not know the flag and always allow executing.
            Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"guise-init", flags)?,
            other => other?,
        };
        let image = image(program);
        let mut rest = &image[..];
        while !rest.is_empty() {
            let written = rustix::io::write(&memfd, rest)?;
            rest = &rest[written..];
        }
        rustix::fs::fcntl_add_seals(
            &memfd,
            SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
        )?;
        Ok(Trampoline(memfd))
    }

    /// The image's name in procfs, if what is mounted there is procfs and leads
    /// to the image. By it the trampoline can be executed with `execve`, which
    /// every profile allows, where `execveat` may be missing.
    pub fn name(&self) -> Option<CString> {
        let name = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let kind = rustix::fs::statfs(c"/proc/self").ok()?.f_type;
        let (named, own) = (rustix::fs::stat(&name).ok()?, rustix::fs::fstat(&self.0).ok()?);
        let same = (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino);
        (kind == rustix::fs::PROC_SUPER_MAGIC && same).then(|| CString::new(name).ok())?
    }

    /// Executes it by name; returns only when that fails.
    pub fn jump_by_name(&self, name: &CString) -> io::Error {
        let args = [c"guise-init".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<libc::c_char>()];
        // SAFETY: path, arguments and environment are NUL-terminated strings in
        // NULL-terminated arrays that outlive the call.
        unsafe { libc::execve(name.as_ptr(), args.as_ptr(), env.as_ptr()) };
        io::Error::last_os_error()
    }

    /// Executes it; returns only when that fails.
    pub fn jump(&self, report: Option<BorrowedFd<'_>>) -> io::Error {
        if let Some(report) = report
            && let Err(e) = super::files::keep_on_exec(report)
        {
            return e;
        }
        let args = [c"guise-init".as_ptr(), std::ptr::null()];
        let env = [std::ptr::null::<libc::c_char>()];
        // SAFETY: path, arguments and environment are NUL-terminated strings in
        // NULL-terminated arrays that outlive the call.
        let result = check(unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.0.as_fd().as_raw_fd(),
                c"".as_ptr(),
                args.as_ptr(),
                env.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        });
        match result {
            Err(e) => e,
            Ok(_) => io::Error::other("execveat returned"),
        }
    }
}

/// Reads a report of the trampoline: the error, if the message is one.
pub fn decode_report(message: &[u8]) -> Option<io::Error> {
    let value = i64::from_le_bytes(message.try_into().ok()?);
    (-4095..0).contains(&value).then(|| io::Error::from_raw_os_error(-value as i32))
}

#[cfg(test)]
mod tests;
