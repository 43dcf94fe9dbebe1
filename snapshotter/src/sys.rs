//! Raw inflate, the confinement of threads, and error codes of zstd: what has no safe interface. The only unsafe code
//! of this crate, one small wrapper each.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_MEM_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateGetDictionary,
    inflateInit2_, inflatePrime, inflateReset, inflateSetDictionary, z_stream, zlibVersion,
};

/// Bits of a raw deflate stream's window, negative as zlib wants it for "no header".
const RAW_WINDOW_BITS: i32 = -15;
/// The window of deflate.
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// A raw deflate stream being inflated.
pub(crate) struct Inflate {
    /// Boxed: zlib's state points back to it.
    stream: Box<z_stream>,
    last_byte: u8,
}

/// What a call of [`Inflate::run`] ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InflateStatus {
    /// Input or room is used up.
    More,
    /// The stream's last block has ended.
    End,
    /// The input is no deflate stream.
    Corrupt,
    /// No memory.
    NoMemory,
}

/// Where a deflate stream can be taken up again: a block boundary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InflatePoint {
    /// Bits of the last consumed byte that belong to the next block: 0 to 7.
    pub(crate) bits: u8,
    /// The last consumed byte.
    pub(crate) last_byte: u8,
    /// The last 32 KiB of output, fewer at the start.
    pub(crate) window: Vec<u8>,
}

// SAFETY: the stream and its state are reached through this value only, and zlib-rs keeps nothing in thread-locals.
unsafe impl Send for Inflate {}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inflate").finish_non_exhaustive()
    }
}

impl Inflate {
    /// A stream at its start; `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: `stream` is a valid `z_stream` whose allocator fields are those of `default`, which zlib-rs replaces or
        // uses as they are; the version text is the library's own and the size the true one.
        let code =
            unsafe { inflateInit2_(&raw mut *stream, RAW_WINDOW_BITS, zlibVersion(), size_of::<z_stream>() as i32) };
        (code == Z_OK).then_some(Self { stream, last_byte: 0 })
    }

    /// Goes back to the start of a stream.
    pub(crate) fn reset(&mut self) {
        // SAFETY: the stream was initialised by `inflateInit2_`, which succeeded.
        let code = unsafe { inflateReset(&raw mut *self.stream) };
        assert_eq!(code, Z_OK, "an initialised stream can be reset");
        self.last_byte = 0;
    }

    /// Inflates `input` to the end of `output`, which grows to at most `output_bytes_max`; gives the bytes consumed.
    pub(crate) fn run(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        output_bytes_max: usize,
    ) -> (usize, InflateStatus) {
        self.call(input, output, output_bytes_max, Z_NO_FLUSH)
    }

    /// Like [`Inflate::run`], but stops at the end of a deflate block; whether it is at one tells [`Inflate::point`].
    pub(crate) fn run_to_boundary(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        output_bytes_max: usize,
    ) -> (usize, InflateStatus) {
        self.call(input, output, output_bytes_max, Z_BLOCK)
    }

    fn call(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        output_bytes_max: usize,
        flush: i32,
    ) -> (usize, InflateStatus) {
        output.reserve(output_bytes_max.saturating_sub(output.len()));
        let before = output.len();
        let room = output_bytes_max.saturating_sub(before).min(u32::MAX as usize);
        let offered = input.len().min(u32::MAX as usize);
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = offered as u32;
        stream.next_out = output.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        stream.avail_out = room as u32;
        // SAFETY: the stream is initialised; `next_in` and `avail_in` describe the live slice `input`, `next_out` and
        // `avail_out` a part of the spare capacity reserved above; both outlive the call, and the pointers are cleared
        // after it, so that none dangles.
        let code = unsafe { inflate(stream, flush) };
        let consumed = offered - stream.avail_in as usize;
        let written = room - stream.avail_out as usize;
        stream.next_in = std::ptr::null();
        stream.avail_in = 0;
        stream.next_out = std::ptr::null_mut();
        stream.avail_out = 0;
        // SAFETY: inflate has initialised the first `written` bytes of the spare capacity, and `written <= room`.
        unsafe { output.set_len(before + written) };
        if let Some(last) = consumed.checked_sub(1) {
            self.last_byte = input[last];
        }
        let status = match code {
            Z_STREAM_END => InflateStatus::End,
            Z_OK | Z_BUF_ERROR => InflateStatus::More,
            Z_MEM_ERROR => InflateStatus::NoMemory,
            _ => InflateStatus::Corrupt,
        };
        (consumed, status)
    }

    /// Whether the stream stands at a block boundary before its end.
    pub(crate) fn at_point(&self) -> bool {
        let state = self.stream.data_type;
        state & 128 != 0 && state & 64 == 0
    }

    /// The point at which the stream stands, if that is a block boundary before its end.
    pub(crate) fn point(&self) -> Option<InflatePoint> {
        if !self.at_point() {
            return None;
        }
        let state = self.stream.data_type;
        let mut window = [MaybeUninit::<u8>::uninit(); WINDOW_BYTES];
        let mut length = 0;
        // SAFETY: the stream is initialised; `window` holds 32,768 bytes, the most that are ever written, and `length` is
        // a live integer.
        let code =
            unsafe { inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr().cast(), &raw mut length) };
        assert_eq!(code, Z_OK, "an initialised stream has a window");
        let used = &window[..length as usize];
        // SAFETY: the call has initialised the first `length` bytes.
        let window = used.iter().map(|byte| unsafe { byte.assume_init() }).collect();
        Some(InflatePoint { bits: (state & 7) as u8, last_byte: self.last_byte, window })
    }

    /// A stream that goes on from `point`, with the byte after its last one; `None` if the point is impossible.
    pub(crate) fn restore(point: &InflatePoint) -> Option<Self> {
        if point.bits > 7 || point.window.len() > WINDOW_BYTES {
            return None;
        }
        let mut inflate = Self::new()?;
        inflate.last_byte = point.last_byte;
        let stream = &raw mut *inflate.stream;
        if point.bits > 0 {
            let value = i32::from(point.last_byte >> (8 - point.bits));
            // SAFETY: the stream is initialised; the call takes no other pointer.
            if unsafe { inflatePrime(stream, i32::from(point.bits), value) } != Z_OK {
                return None;
            }
        }
        // SAFETY: the stream is initialised; pointer and length describe the live window, which is copied.
        let code = unsafe { inflateSetDictionary(stream, point.window.as_ptr(), point.window.len() as u32) };
        (code == Z_OK).then_some(inflate)
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `inflateInit2_`, which succeeded, and is not used again.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}

/// The CRC-32 of what `checksum` covers, followed by `bytes` (RFC 1952).
pub(crate) fn crc32(checksum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(1 << 30).fold(checksum, |checksum, part| {
        // SAFETY: pointer and length describe the live slice `part`.
        unsafe { libz_rs_sys::crc32(checksum.into(), part.as_ptr(), part.len() as u32) as u32 }
    })
}

/// Whether `code`, an error of libzstd, means that a frame's window is above the limit that was set.
pub(crate) fn zstd_window_too_large(code: usize) -> bool {
    use zstd::zstd_safe::zstd_sys::{ZSTD_ErrorCode, ZSTD_getErrorCode};
    // SAFETY: takes and returns integers; every value of `code` is allowed.
    unsafe { ZSTD_getErrorCode(code) == ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge }
}

// Confinement of the calling thread. `libc` and `rustix` name none of Landlock.

/// `struct landlock_ruleset_attr`, its first field: all that is used here.
#[repr(C)]
struct LandlockRuleset {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct LandlockPathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
const LANDLOCK_EXECUTE: u64 = 1;
/// All of ABI 2: execute, write, read, list, remove, make of each kind, refer.
const LANDLOCK_ABI_2: u64 = (1 << 14) - 1;
/// ABI 3 adds truncation.
const LANDLOCK_TRUNCATE: u64 = 1 << 14;

/// The version of Landlock that the kernel has; `None` if it has none, or has it switched off.
pub(crate) fn landlock_abi() -> Option<u32> {
    // SAFETY: asked for the version only, the call takes no memory: the pointer is null and the size 0, as it demands.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<LandlockRuleset>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).ok()
}

/// Lets the calling thread use files below `directory` only, and execute none; without one, none at all.
pub(crate) fn landlock_confine(abi: u32, directory: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let handled = if abi >= 3 { LANDLOCK_ABI_2 | LANDLOCK_TRUNCATE } else { LANDLOCK_ABI_2 };
    let attributes = LandlockRuleset { handled_access_fs: handled };
    // SAFETY: the pointer is to a live struct whose true size is passed; the kernel copies it.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of::<LandlockRuleset>(), 0u32)
    };
    let ruleset = descriptor_of(ruleset)?;
    if let Some(directory) = directory {
        let rule =
            LandlockPathBeneath { allowed_access: handled & !LANDLOCK_EXECUTE, parent_fd: directory.as_raw_fd() };
        // SAFETY: both descriptors are open while borrowed; the pointer is to a live struct of the kind that the rule
        // type says, which the kernel copies.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                LANDLOCK_RULE_PATH_BENEATH,
                &raw const rule,
                0u32,
            )
        };
        checked(added)?;
    }
    // SAFETY: takes a descriptor that is open, and no pointer.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) })
}

/// Sets `no_new_privs` for the calling thread (`prctl(2)`).
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: this option takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// System calls that no extraction needs, and by which a program could be started or another process reached.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "arm")]
const AUDIT_ARCH: u32 = 0x4000_0028;

/// Answers [`FORBIDDEN`] calls of the calling thread with `EPERM`, for good (`seccomp(2)`).
///
/// An error and not a signal: a thread killed alone would leave its locks held, and the daemon must live on.
pub(crate) fn forbid_programs() -> io::Result<()> {
    let program = filter();
    let wire = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `wire` points to a live array of the length it says, which the kernel copies although the field is a
    // mutable pointer; `no_new_privs` is set, which the call demands.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const wire) })
}

fn filter() -> Vec<libc::sock_filter> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Offsets of `nr` and `arch` in `struct seccomp_data`: 0 and 4. Calls of another architecture, x32 too, are refused.
    let mut program = vec![
        op(LOAD_WORD, 0, 0, 4),
        op(JUMP_EQUAL, 1, 0, AUDIT_ARCH),
        op(RETURN, 0, 0, refuse),
        op(LOAD_WORD, 0, 0, 0),
    ];
    if cfg!(target_arch = "x86_64") {
        program.extend([op(JUMP_GREATER, 0, 1, 0x4000_0000), op(RETURN, 0, 0, refuse)]);
    }
    for number in FORBIDDEN {
        program.extend([op(JUMP_EQUAL, 0, 1, *number as u32), op(RETURN, 0, 0, refuse)]);
    }
    program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor_of(result: libc::c_long) -> io::Result<OwnedFd> {
    checked(result)?;
    // SAFETY: the call has just returned this number as a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text whose deflate stream has many blocks that end at every bit position.
    fn sample() -> Vec<u8> {
        let mut state = 1u64;
        let mut text = Vec::new();
        while text.len() < 6 << 20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Stretches of different entropy, so that the compressor starts new blocks.
            let letters = 2 + (text.len() >> 16) % 60;
            text.push(b' ' + (state >> 40) as u8 % letters as u8);
        }
        text
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        use std::io::Write;
        use std::process::{Command, Stdio};
        #[expect(clippy::disallowed_methods, reason = "gzip makes the input")]
        let mut gzip = Command::new("gzip").arg("-6").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = gzip.stdin.take().unwrap();
        let text = text.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&text).unwrap());
        let blob = gzip.wait_with_output().unwrap().stdout;
        feeder.join().unwrap();
        blob[10..blob.len() - 8].to_vec()
    }

    #[test]
    fn an_inflate_that_is_restored_at_a_block_boundary_goes_on_exactly() {
        let text = sample();
        let blob = deflate(&text);
        let mut inflate = Inflate::new().unwrap();
        let (mut consumed, mut output) = (0, Vec::new());
        let mut points = Vec::new();
        loop {
            let (count, status) = inflate.run_to_boundary(&blob[consumed..], &mut output, text.len() + 1);
            consumed += count;
            assert!(matches!(status, InflateStatus::More | InflateStatus::End), "{status:?}");
            if status == InflateStatus::End {
                break;
            }
            points.extend(inflate.point().map(|point| (consumed, output.len(), point)));
        }
        assert_eq!(output, text);
        let bits: std::collections::BTreeSet<u8> = points.iter().map(|(_, _, point)| point.bits).collect();
        assert_eq!(bits.len(), 8, "all bit positions occur: {bits:?}, {} points", points.len());
        for (consumed, written, point) in points.iter().step_by(1 + points.len() / 60) {
            let mut restored = Inflate::restore(point).unwrap();
            let mut rest = Vec::new();
            let (_, status) = restored.run(&blob[*consumed..], &mut rest, text.len());
            assert_eq!(status, InflateStatus::End);
            assert!(rest == text[*written..], "a restore at byte {consumed}, bit {} differs", point.bits);
        }
    }
}
