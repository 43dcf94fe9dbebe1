#!/bin/sh
# What a program finds in its container, a line a fact, in sections. Run by tests/tests/flags_beside_docker.rs.
section() { echo "#$1"; }
section arguments; tr '\0' ' ' < /proc/$$/cmdline; echo
section status; grep -E '^(Umask|Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Cpus_allowed_list|Mems_allowed_list)' /proc/self/status
section limits; cat /proc/self/limits
section process; echo "oom_score_adj $(cat /proc/self/oom_score_adj)"; echo "cwd $(pwd)"; echo "umask $(umask)"; echo "first $(cat /proc/1/comm)"
test -t 0 && echo "input is a terminal"; test -t 1 && echo "output is a terminal"
section descriptors; for open in /proc/$$/fd/*; do echo ${open##*/}; done
section environment; env
section namespaces; for name in cgroup ipc mnt net pid user uts; do echo "$name $(readlink /proc/self/ns/$name)"; done
section mounts; cat /proc/self/mountinfo
section settings
grep -rs . /proc/sys/net /proc/sys/fs/mqueue /proc/sys/kernel/msgmax /proc/sys/kernel/msgmnb /proc/sys/kernel/msgmni /proc/sys/kernel/sem \
    /proc/sys/kernel/shmall /proc/sys/kernel/shmmax /proc/sys/kernel/shmmni /proc/sys/kernel/shm_rmid_forced \
    /proc/sys/kernel/hostname /proc/sys/kernel/domainname
section groups
cd /sys/fs/cgroup 2>/dev/null && for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes \
    memory/memory.soft_limit_in_bytes memory/memory.swappiness memory/memory.oom_control cpu/cpu.shares cpu/cpu.cfs_quota_us \
    cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max blkio/blkio.weight blkio/blkio.bfq.weight \
    blkio/blkio.throttle.read_bps_device blkio/blkio.throttle.write_bps_device blkio/blkio.throttle.read_iops_device \
    blkio/blkio.throttle.write_iops_device devices/devices.list freezer/freezer.state memory.max memory.swap.max memory.low cpu.max \
    cpu.weight cpuset.cpus cpuset.mems pids.max io.max io.weight; do
    test -r $file && while read line; do echo "$file $line"; done < $file
done
cut -d : -f 2- /proc/self/cgroup
cd /
section hosts; cat /etc/hosts
section resolver; cat /etc/resolv.conf
section names; cat /etc/hostname; hostname; stat -c '%n %a %u %g' /etc/hosts /etc/hostname /etc/resolv.conf
section devices
find /dev -type l | while read link; do echo "$link -> $(readlink $link)"; done
find /dev -path /dev/shm -prune -o -path /dev/mqueue -prune -o ! -type l -print | while read node; do stat -c '%n %F %a %u %g %t:%T' $node; done
section masked
for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list \
    /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware; do
    if [ -d $path ]; then echo "$path folder of $(ls -A $path | wc -l)"
    elif [ -e $path ]; then echo "$path file of $(head -c 1 $path 2>/dev/null | wc -c)"; fi
done
section writable
for path in / /tmp /etc /etc/hosts /etc/resolv.conf /etc/hostname /dev /dev/shm /dev/mqueue /proc /proc/bus /proc/fs /proc/irq /proc/sys \
    /proc/sysrq-trigger /sys /sys/fs/cgroup /sys/fs/cgroup/* /sys/kernel /m /m/below /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; do
    test -e $path || continue
    if test -w $path; then echo "$path yes"; else echo "$path no"; fi
done
section opened
for node in null zero full random urandom tty mine fuse; do
    test -e /dev/$node || continue
    if head -c 0 /dev/$node 2>/dev/null; then echo "$node read"; fi
done
section files; for path in /m /m/* /m/below/* /made /scratch; do test -e $path && stat -c '%n %F %a %u %g' $path; done
section links; ip -o address 2>/dev/null; ip route 2>/dev/null
section end
