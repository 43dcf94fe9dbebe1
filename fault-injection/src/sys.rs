//! The filter of [`sealed`](crate::sealed()) and the signal that it raises. The only unsafe code of this crate.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// Refused calls that are kept.
const KEPT_MAX: usize = 64;

static REFUSED: [AtomicI64; KEPT_MAX] = [const { AtomicI64::new(0) }; KEPT_MAX];
static REFUSED_COUNT: AtomicUsize = AtomicUsize::new(0);

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Calls that name a file, change one, or make one durable. Reading and writing at the position of a descriptor
/// stay, for the harness's output; every way to a descriptor of a file is here.
const FILE_CALLS: &[(&str, libc::c_long)] = calls! {
    SYS_openat SYS_openat2 SYS_open_by_handle_at SYS_name_to_handle_at SYS_open_tree SYS_fsopen SYS_fspick SYS_fsmount
    SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_getdents64
    SYS_mkdirat SYS_mknodat SYS_symlinkat SYS_linkat SYS_renameat SYS_renameat2 SYS_unlinkat
    SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_utimensat SYS_truncate SYS_ftruncate SYS_fallocate
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
    SYS_pread64 SYS_preadv SYS_preadv2 SYS_pwrite64 SYS_pwritev SYS_pwritev2
    SYS_sendfile SYS_splice SYS_copy_file_range SYS_flock
    SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_fadvise64
    SYS_chdir SYS_fchdir SYS_chroot SYS_pivot_root SYS_mount SYS_move_mount SYS_umount2 SYS_mount_setattr
    SYS_io_uring_setup SYS_io_uring_enter SYS_io_setup SYS_io_submit SYS_execve SYS_execveat
};

/// Their forms from before the `*at` calls.
#[cfg(target_arch = "x86_64")]
const OLD_FILE_CALLS: &[(&str, libc::c_long)] = calls! {
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_mkdir SYS_rmdir SYS_mknod SYS_symlink
    SYS_link SYS_rename SYS_unlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat
};
#[cfg(not(target_arch = "x86_64"))]
const OLD_FILE_CALLS: &[(&str, libc::c_long)] = &[];

/// `AUDIT_ARCH_*` of this build: calls of another architecture have other numbers.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: Option<u32> = None;

/// The names of the calls refused so far in this process, as far as they are kept.
pub(crate) fn refused_calls() -> Vec<String> {
    let count = REFUSED_COUNT.load(Ordering::SeqCst).min(KEPT_MAX);
    let name = |number: &AtomicI64| {
        let number = number.load(Ordering::SeqCst);
        let known = FILE_CALLS.iter().chain(OLD_FILE_CALLS).find(|(_, known)| *known == number);
        known.map_or_else(|| format!("call {number}"), |(name, _)| name.trim_start_matches("SYS_").to_owned())
    };
    REFUSED[..count].iter().map(name).collect()
}

/// Puts this thread, and those it will start, under the filter. There is no way back.
///
/// # Errors
/// `ENOSYS` on an architecture whose numbers are not known here; those of `sigaction(2)` and `seccomp(2)`.
pub(crate) fn refuse_files() -> io::Result<()> {
    let architecture = ARCHITECTURE.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
    answer_traps()?;
    // glibc's allocator would read files: the number of processors from the ninth arena on, and how memory may be
    // overcommitted before it first gives some back.
    // SAFETY: each takes two numbers and no pointer; they only bound what later allocations and releases do.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 8);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
    install(&program(architecture))
}

/// A statement of classic BPF.
fn statement(code: u32, operand: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
}

/// Skips `otherwise` statements unless the loaded word equals `operand`.
fn unless_equal_skip(operand: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: otherwise, k: operand }
}

fn program(architecture: u32) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // Offsets of `nr` and `arch` in `struct seccomp_data`.
    const NUMBER_AT: u32 = 0;
    const ARCHITECTURE_AT: u32 = 4;
    let mut program = vec![
        statement(LOAD, ARCHITECTURE_AT),
        // Calls of another architecture never come from this program: the end of it is no loss.
        libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 1, jf: 0, k: architecture },
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER_AT),
    ];
    for (_, number) in FILE_CALLS.iter().chain(OLD_FILE_CALLS) {
        program.push(unless_equal_skip(*number as u32, 1));
        program.push(statement(RETURN, libc::SECCOMP_RET_TRAP));
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: takes no pointer; it only keeps this thread from gaining privileges by `execve`, which is refused.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` points to `len` initialised statements that outlive the call; the kernel copies them, checks the
    // program before it takes it, and does not write through the pointer.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Answers `SIGSYS` of the filter, once for the whole process.
fn answer_traps() -> io::Result<()> {
    static ANSWERED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = ANSWERED.get_or_init(|| {
        // SAFETY: `sigaction` is plain data of integers and an optional pointer, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note_and_refuse as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: `action` is initialised and outlives the call; its mask is empty; the handler has the signature that
        // SA_SIGINFO asks for and calls nothing that is not safe in a signal; no old action is asked for.
        let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
    });
    (*result).map_err(io::Error::from_raw_os_error)
}

/// Notes which call was refused, and makes it return `EPERM`. Only atomics: this runs in a signal.
extern "C" fn note_and_refuse(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let number;
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: with SA_SIGINFO the kernel passes a valid `ucontext_t` that nobody else uses until the handler
        // returns; after a trap RAX holds the number of the call, and what is put there becomes its result.
        let result = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
        number = *result;
        *result = -i64::from(libc::EPERM);
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: as above; X8 holds the number of the call and X0 becomes its result.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.regs };
        number = registers[8] as i64;
        registers[0] = -i64::from(libc::EPERM) as u64;
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        number = -1; // Never installed there.
    }
    let at = REFUSED_COUNT.fetch_add(1, Ordering::SeqCst);
    if let Some(kept) = REFUSED.get(at) {
        kept.store(number, Ordering::SeqCst);
    }
}
