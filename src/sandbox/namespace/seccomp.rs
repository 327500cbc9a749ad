//! The system calls a sandbox may not make.
//!
//! A list of what is denied, not of what is allowed: agents run any program there is, and the
//! fences that carry the weight are the namespaces and the dropped capabilities. What is denied
//! is what reaches much kernel code few programs need (mounting, BPF, io_uring, key rings, …) and
//! the doors to new namespaces, which would hand back the capabilities taken away.
//!
//! Decided:
//! - `ptrace` and its relatives are allowed: a debugger reaches only processes of its own user
//!   that are dumpable, and without `CAP_SYS_PTRACE` never PID 1;
//! - `clone3` answers "not implemented", since its flags can't be read by a filter and every libc
//!   falls back to `clone`, whose flags can;
//! - sockets are Unix, IPv4, IPv6 and the routing netlink (the C library asks it for the
//!   machine's addresses); vsock, packet, nfnetlink and all others are denied, and so are protocols
//!   of the allowed families that reach much code and lead nowhere (MPTCP, SCTP, DCCP, UDP-Lite);
//! - system calls of the 32-bit and x32 ABIs, whose numbers the list does not know, are refused.

use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use super::sys::{Step, StepError};

/// Linux 6.15; the same number on every architecture.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Denied whatever the arguments.
const DENIED: &[libc::c_long] = &[
    // mounts and roots
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // namespaces
    libc::SYS_setns,
    // programs in the kernel, and rings that act beside this filter
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    // key rings are not namespaced by process
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // the machine
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy,
];

/// Denied on machines that have them.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

/// Every flag of `clone` and `unshare` that makes a namespace.
const NEW_NAMESPACES: [libc::c_int; 8] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    CLONE_NEWTIME,
];
/// In the signal byte of `clone`, so it means a time namespace to `unshare` only.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// The programs to load, compiled. Loading them is irrevocable for the process and its children.
#[derive(Debug)]
pub struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Compiles for the machine this runs on.
    pub fn compile() -> Result<Self, StepError> {
        let deny = deny_list()
            .map_err(io::Error::other)
            .step("compile the system call filter")?;
        Ok(Self(vec![deny, not_implemented()]))
    }

    /// Loads them. Needs `no_new_privs`.
    pub fn load(&self) -> Result<(), StepError> {
        for filter in &self.0 {
            seccompiler::apply_filter(filter)
                .map_err(io::Error::other)
                .step("load the system call filter")?;
        }
        Ok(())
    }
}

fn deny_list() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|call| (*call, vec![]))
        .collect();
    let any_of = |argument, flags: &[libc::c_int]| {
        let rule = |flag: &libc::c_int| {
            let flag = *flag as u32 as u64;
            let set = SeccompCondition::new(argument, Len::Qword, Op::MaskedEq(flag), flag)?;
            SeccompRule::new(vec![set])
        };
        flags.iter().map(rule).collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_unshare, any_of(0, &NEW_NAMESPACES)?);
    let for_clone: Vec<_> = NEW_NAMESPACES
        .iter()
        .copied()
        .filter(|flag| *flag != CLONE_NEWTIME)
        .collect();
    rules.insert(libc::SYS_clone, any_of(0, &for_clone)?);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, socket_rules()?);
    }
    // Typing into the terminal of another process (CVE-2017-5226), console control, line disciplines.
    let request = |number: u64| {
        SeccompCondition::new(1, Len::Dword, Op::Eq, number).and_then(|c| SeccompRule::new(vec![c]))
    };
    rules.insert(
        libc::SYS_ioctl,
        vec![
            request(libc::TIOCSTI)?,
            request(libc::TIOCLINUX)?,
            request(libc::TIOCSETD)?,
        ],
    );
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let deny = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, deny, arch)?.try_into()
}

fn socket_rules() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = |argument, op, value: libc::c_int| {
        SeccompCondition::new(argument, Len::Dword, op, value as u64)
    };
    let known = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let unknown: Result<Vec<_>, _> = known.iter().map(|f| condition(0, Op::Ne, *f)).collect();
    let netlink = vec![
        condition(0, Op::Eq, libc::AF_NETLINK)?,
        condition(2, Op::Ne, libc::NETLINK_ROUTE)?,
    ];
    let mut rules = vec![SeccompRule::new(unknown?)?, SeccompRule::new(netlink)?];
    for protocol in [
        libc::IPPROTO_MPTCP,
        libc::IPPROTO_SCTP,
        libc::IPPROTO_DCCP,
        libc::IPPROTO_UDPLITE,
    ] {
        rules.push(SeccompRule::new(vec![condition(2, Op::Eq, protocol)?])?);
    }
    Ok(rules)
}

/// "Not implemented" for `clone3` and, on x86-64, for every x32 number:
///
/// ```text
/// load number; if number == clone3 or number >= 0x40000000 return ENOSYS; return ALLOW
/// ```
fn not_implemented() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32_BIT: u32 = 0x4000_0000;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        op(LOAD_WORD, 0, 0, 0),
        op(JUMP_EQUAL, 1, 0, libc::SYS_clone3 as u32),
        op(JUMP_GREATER_OR_EQUAL, 0, 1, X32_BIT),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_within_the_kernels_limit() {
        let filters = Filters::compile().unwrap();
        for filter in &filters.0 {
            assert!(
                !filter.is_empty() && filter.len() < 4096,
                "{}",
                filter.len()
            );
        }
    }
}
