#!/usr/bin/env bash
# A real Slurm on this machine, for tests: as root, without systemd, cgroups or an accounting database. The partition
# main has one node; pair has two, which are two slurmd daemons on this machine.
# Needs Debian's slurmctld, slurmd, slurm-client and munge. Prints what sinfo says; leaves a running one alone.
set -euo pipefail
if sinfo -h -o %T 2>/dev/null | grep -Eq '^(idle|mixed|allocated)'; then
  sinfo
  exit
fi
base=${SLURM_TEST_FOLDER:-/tmp/one-node-slurm}
host=$(hostname -s)
second=$host-2
# Not what OMP_NUM_THREADS says, which nproc follows, and two at least: jobs of two processes would wait for ever.
cpus=$(nproc --all)
cpus=$((cpus < 2 ? 2 : cpus))
memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024 - 512))
if [ -s /etc/slurm/slurm.conf ] && ! grep -q '^ClusterName=onenode' /etc/slurm/slurm.conf; then
  echo "this machine has a Slurm of its own (/etc/slurm/slurm.conf); it is left alone" >&2
  exit 1
fi
rm -rf "$base"
mkdir -p "$base"/{state,log} "$base/spool-$host" "$base/spool-$second" /run/munge /var/log/munge /etc/slurm
# cred_expire: a requeued job would wait two minutes for its old credential. MinJobAge: squeue shows ended jobs for an
# hour, which stands in for accounting. OverSubscribe: four jobs a core, since these tests wait more than they compute.
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool-%n
SlurmdPidFile=$base/slurmd-%n.pid
SlurmdParameters=config_overrides
SlurmdLogFile=$base/log/slurmd-%n.log
SlurmctldPidFile=$base/slurmctld.pid
SlurmctldLogFile=$base/log/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=3
MinJobAge=3600
OverTimeLimit=0
NodeName=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$cpus RealMemory=$memory State=UNKNOWN
NodeName=$second NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
PartitionName=pair Nodes=$host,$second MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
if [ ! -s /etc/munge/munge.key ]; then
  head -c 1024 /dev/urandom > /etc/munge/munge.key
fi
chown -R munge: /etc/munge /run/munge /var/log/munge /var/lib/munge
chmod 400 /etc/munge/munge.key
chmod 755 /run/munge
munge -n > /dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged --force
slurmctld
slurmd -N "$host"
slurmd -N "$second"
for _ in $(seq 150); do
  if [ "$(sinfo -h -p pair -t idle -o %D 2>/dev/null)" = 2 ]; then
    sinfo
    exit
  fi
  sleep 0.2
done
echo "the nodes did not become idle; see $base/log" >&2
exit 1
