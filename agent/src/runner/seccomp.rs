//! The seccomp filter of a process.
//!
//! libseccomp generates the filter. Our own program runs before it, for two things that runc's filters have
//! and libseccomp's do not. System calls newer than any that the profile names return ENOSYS, so that a
//! program can fall back. And system calls newer than this build's libseccomp are known by number.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

/// Why a process cannot have its filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// An error number that a tracer cannot be given.
    #[error("{0} does not fit into 16 bits")]
    Errno(u32),
    /// libseccomp refuses.
    #[error("{0} is refused")]
    Refused(String, #[source] SeccompError),
    /// libseccomp does not return its program.
    #[error("libseccomp could not create the filter")]
    Export(#[source] io::Error),
    /// The kernel refuses.
    #[error("the kernel refuses the filter")]
    Load(#[source] io::Error),
}

/// System calls that libseccomp 2.5 does not know. Their numbers are the same for all of x86.
const NEWER: &[(&str, libc::c_long)] = &[
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
];

/// A system call's number has this bit where it is one of the x32 ABI.
const X32: u32 = 1 << 30;
/// linux/audit.h
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The codes of linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | … | BPF_K, BPF_RET | BPF_K.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_BITS_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Installs the filter in the calling process.
pub fn load(seccomp: &LinuxSeccomp) -> Result<(), FilterError> {
    let mut program = prefix(seccomp)?;
    program.extend(main_part(seccomp)?);
    let count = u16::try_from(program.len())
        .map_err(|_| FilterError::Load(io::ErrorKind::ArgumentListTooLong.into()))?;
    let program = libc::sock_fprog { len: count, filter: program.as_mut_ptr() };
    // SAFETY: the program's length is that of the array it points to, which lives on.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags(seccomp), &raw const program)
    };
    if result < 0 { Err(FilterError::Load(io::Error::last_os_error())) } else { Ok(()) }
}

/// Of the other flags, one is for several threads, and one for a listener, which the guest has not.
fn flags(seccomp: &LinuxSeccomp) -> libc::c_ulong {
    let Some(flags) = seccomp.flags() else { return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// What libseccomp makes of the rules.
fn main_part(seccomp: &LinuxSeccomp) -> Result<Vec<libc::sock_filter>, FilterError> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error| FilterError::Refused(what, error)
    };
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(refused("defaultAction"))?;
    for arch in seccomp.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)).map_err(refused(&format!("architectures: {arch}")))?;
    }
    for rule in seccomp.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses a rule with the default action.
        if action == default {
            continue;
        }
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            add_rule(&mut context, action, call, rule).map_err(refused(&format!("syscalls: {name}")))?;
        }
    }
    let bytes = export(&context).map_err(FilterError::Export)?;
    Ok(bytes.chunks_exact(size_of::<libc::sock_filter>()).map(instruction).collect())
}

fn export(context: &ScmpFilterContext) -> io::Result<Vec<u8>> {
    let mut file = File::from(memfd_create(c"filter", MFdFlags::MFD_CLOEXEC)?);
    context.export_bpf(&file).map_err(io::Error::other)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn instruction(bytes: &[u8]) -> libc::sock_filter {
    let word = |at: usize| [bytes[at], bytes[at + 1]];
    libc::sock_filter {
        code: u16::from_ne_bytes(word(0)),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

/// libseccomp takes one comparison of an argument a rule; with several of one argument, as with runc, each is a
/// rule of its own.
fn add_rule(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    rule: &LinuxSyscall,
) -> Result<(), SeccompError> {
    let arguments = rule.args().as_deref().unwrap_or(&[]);
    let comparisons: Vec<_> = arguments.iter().map(comparison).collect();
    let indices: HashSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    if indices.len() == comparisons.len() {
        context.add_rule_conditional(action, call, &comparisons)?;
    } else {
        for one in &comparisons {
            context.add_rule_conditional(action, call, std::slice::from_ref(one))?;
        }
    }
    Ok(())
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as Operator;
    let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
    let (operator, value) = match argument.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        // The specification's first value is the mask.
        Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
    };
    // An index is below 6; the parser and libseccomp check it.
    ScmpArgCompare::new(argument.index() as u32, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    use LinuxSeccompAction as Action;
    let errno = errno.unwrap_or(libc::EPERM as u32);
    let number = u16::try_from(errno).map_err(|_| FilterError::Errno(errno))?;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(number.into()),
        Action::ScmpActTrace => ScmpAction::Trace(number),
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActNotify => ScmpAction::Notify,
    })
}

/// The value by which a program tells the kernel of an action (linux/seccomp.h).
fn verdict(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::Errno(number) => errno_verdict(number),
        ScmpAction::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        // Unknown actions are errors.
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

fn errno_verdict(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | (number as u32 & libc::SECCOMP_RET_DATA)
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// An architecture of this machine, as a filter sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Abi {
    arch: ScmpArch,
    audit: u32,
    /// The part of its numbers that tells it from another.
    bit: u32,
}

impl Abi {
    /// None for one that a process of this machine cannot have.
    fn of(arch: Arch) -> Option<Self> {
        let (arch, audit, bit) = match architecture(arch) {
            ScmpArch::Native | ScmpArch::X8664 => (ScmpArch::X8664, AUDIT_ARCH_X86_64, 0),
            ScmpArch::X32 => (ScmpArch::X32, AUDIT_ARCH_X86_64, X32),
            ScmpArch::X86 => (ScmpArch::X86, AUDIT_ARCH_I386, 0),
            _ => return None,
        };
        Some(Self { arch, audit, bit })
    }

    /// The number of a system call, if it has one.
    fn number(self, name: &str) -> Option<u32> {
        match ScmpSyscall::from_name_by_arch(name, self.arch) {
            // Negative numbers are pseudo numbers for system calls of other architectures.
            Ok(call) => u32::try_from(call.as_raw_syscall()).ok(),
            Err(_) => newer(name).map(|number| number | self.bit),
        }
    }
}

/// The number of a system call that only this file knows.
fn newer(name: &str) -> Option<u32> {
    if ScmpSyscall::from_name(name).is_ok() {
        return None;
    }
    let (_, number) = NEWER.iter().find(|(newer, _)| *newer == name)?;
    u32::try_from(*number).ok()
}

/// The program that runs before libseccomp's.
fn prefix(seccomp: &LinuxSeccomp) -> Result<Vec<libc::sock_filter>, FilterError> {
    let listed = seccomp.architectures().as_deref().unwrap_or(&[]);
    let mut abis: Vec<Abi> = Vec::new();
    for abi in listed.iter().filter_map(|arch| Abi::of(*arch)) {
        if !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    let unknown = answers_unknown(seccomp);
    if listed.is_empty() {
        abis.extend(Abi::of(Arch::ScmpArchNative));
    }
    let mut program = Vec::new();
    for abi in abis {
        // As with runc, a profile that lists no architecture says nothing of what is newer than it.
        let highest = if unknown && !listed.is_empty() { highest(seccomp, abi) } else { None };
        program.extend(section(abi, &exceptions(seccomp, abi)?, highest));
    }
    Ok(program)
}

/// Whether unknown system calls should return ENOSYS: not if the default is to allow, nor if the profile returns it
/// itself.
fn answers_unknown(seccomp: &LinuxSeccomp) -> bool {
    use LinuxSeccompAction as Action;
    !matches!(seccomp.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
        && seccomp.default_errno_ret() != Some(libc::ENOSYS as u32)
}

/// The highest number that a rule names.
fn highest(seccomp: &LinuxSeccomp, abi: Abi) -> Option<u32> {
    let names = seccomp.syscalls().iter().flatten().flat_map(|rule| rule.names());
    names.filter_map(|name| abi.number(name)).max()
}

/// The rules for system calls that libseccomp does not know. Rules with conditions are ignored, and what they allow is
/// not allowed.
fn exceptions(seccomp: &LinuxSeccomp, abi: Abi) -> Result<Vec<(u32, u32)>, FilterError> {
    let mut list = Vec::new();
    for rule in seccomp.syscalls().iter().flatten() {
        if rule.args().as_ref().is_some_and(|args| !args.is_empty()) {
            continue;
        }
        let verdict = verdict(action(rule.action(), rule.errno_ret())?);
        let numbers = rule.names().iter().filter_map(|name| newer(name));
        list.extend(numbers.map(|number| (number | abi.bit, verdict)));
    }
    Ok(list)
}

/// The part of the program for one architecture; it falls through if it has no verdict.
fn section(abi: Abi, exceptions: &[(u32, u32)], highest: Option<u32>) -> Vec<libc::sock_filter> {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let answer = |k| step(RETURN, k, 0, 0);
    let mut body = Vec::new();
    for (number, verdict) in exceptions {
        body.extend([step(JUMP_EQUAL, *number, 0, 1), answer(*verdict)]);
    }
    if let Some(highest) = highest {
        body.extend([step(JUMP_GREATER, highest, 0, 1), answer(errno_verdict(libc::ENOSYS))]);
    }
    if body.is_empty() {
        return body;
    }
    // There are not more exceptions than NEWER has entries, so this fits.
    let over = body.len() as u8;
    let mut all = vec![step(LOAD, ARCHITECTURE, 0, 0), step(JUMP_EQUAL, abi.audit, 0, over + 2)];
    all.push(step(LOAD, NUMBER, 0, 0));
    let (set, clear) = if abi.bit != 0 { (0, over) } else { (over, 0) };
    all.push(step(JUMP_BITS_SET, X32, set, clear));
    all.extend(body);
    all
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
