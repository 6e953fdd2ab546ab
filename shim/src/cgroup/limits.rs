//! Sets limits in the container's cgroup on the host.
//!
//! libcgroups writes the kernel's files. systemd must be told as well, where it has a property for the limit:
//! when one setting of a controller changes, it writes all settings of this controller with the values that
//! it knows.

use std::fs;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager as Unified;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Cgroup, CgroupError, Driver, HIERARCHY};

/// The kernel's file for CPU time and its period.
const CPU_MAX: &str = "cpu.max";
/// The kernel's file for swap alone, of cgroup v2.
const SWAP_MAX: &str = "memory.swap.max";

impl Cgroup {
    /// Sets limits; what they leave out stays as it is.
    ///
    /// # Errors
    /// [`CgroupError::Limit`] names the field.
    pub fn limit(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        if *resources == LinuxResources::default() {
            return Ok(());
        }
        // One after the other, so that an error is that of a field.
        for (field, part) in by_field(resources) {
            match self.driver {
                Driver::Legacy => apply(&self.manager()?, field, &part)?,
                Driver::Unified => self.write(field, &part)?,
                Driver::Systemd => {
                    self.tell_systemd(field, &part)?;
                    self.write(field, &part)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the files of cgroup v2.
    fn write(&self, field: &'static str, part: &LinuxResources) -> Result<(), CgroupError> {
        let manager = Unified::new(HIERARCHY.into(), self.path.clone()).map_err(error(field))?;
        apply(&manager, field, part)?;
        if part.memory().as_ref().is_some_and(forbids_swap) {
            // libcgroups leaves the file alone where there is to be none. A kernel without swap has no file.
            let file = self.directory().join(SWAP_MAX);
            if file.exists() {
                fs::write(file, "0").map_err(error(field))?;
            }
        }
        Ok(())
    }

    /// Tells systemd, which writes all settings of the controller, at once or a moment later.
    fn tell_systemd(&self, field: &'static str, part: &LinuxResources) -> Result<(), CgroupError> {
        let cpu_max = fs::read_to_string(self.directory().join(CPU_MAX)).unwrap_or_default();
        let Some(told) = for_systemd(part, &cpu_max) else { return Ok(()) };
        let before = self.settings(part);
        let manager = self.manager()?;
        apply(&manager, field, &told)?;
        // systemd writes the settings before it answers the next request.
        apply(&manager, field, &LinuxResources::default())?;
        before.restore();
        Ok(())
    }
}

fn error<E>(field: &'static str) -> impl Fn(E) -> CgroupError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| CgroupError::Limit { field, source: Box::new(source) }
}

fn apply<M>(manager: &M, field: &'static str, resources: &LinuxResources) -> Result<(), CgroupError>
where
    M: CgroupManager,
    M::Error: std::error::Error + Send + Sync + 'static,
{
    let options =
        ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
    manager.apply(&options).map_err(error(field))
}

/// Whether memory and swap together may be no more than memory.
fn forbids_swap(memory: &LinuxMemory) -> bool {
    memory.limit().is_some_and(|limit| limit > 0 && memory.swap() == Some(limit))
}

/// The systemd properties of a part; none if there is no property. systemd has one for CPUs by number, but libcgroups
/// uses a wrong type for it; it is an array of bytes.
///
/// libcgroups always tells it the CPU quota and period, and treats missing values as unlimited. So the values of
/// `cpu_max` are passed as well.
fn for_systemd(part: &LinuxResources, cpu_max: &str) -> Option<LinuxResources> {
    let mut told = part.clone();
    let mut cpu = part.cpu().clone().unwrap_or_default();
    for (file, value) in part.unified().iter().flatten() {
        if file.as_str() == CPU_MAX {
            let (quota, period) = parse_cpu_max(value);
            let (quota, period) = (quota.or(cpu.quota()), period.or(cpu.period()));
            cpu = with_time(cpu, quota, period);
        }
    }
    told.set_unified(None).set_cpu(None);
    cpu.set_cpus(None).set_mems(None);
    if cpu != LinuxCpu::default() {
        let (quota, period) = parse_cpu_max(cpu_max);
        let (own_quota, own_period) = (cpu.quota(), cpu.period());
        told.set_cpu(Some(with_time(cpu, own_quota.or(quota), own_period.or(period))));
    }
    (told != LinuxResources::default()).then_some(told)
}

fn with_time(mut cpu: LinuxCpu, quota: Option<i64>, period: Option<u64>) -> LinuxCpu {
    cpu.set_quota(quota).set_period(period);
    cpu
}

/// Time and period of a text of the form of `cpu.max`; a time of -1 is no limit.
fn parse_cpu_max(text: &str) -> (Option<i64>, Option<u64>) {
    let mut words = text.split_whitespace();
    let quota = words.next().and_then(|word| if word == "max" { Some(-1) } else { word.parse().ok() });
    (quota, words.next().and_then(|word| word.parse().ok()))
}

/// Resources with one field each.
fn by_field(resources: &LinuxResources) -> Vec<(&'static str, LinuxResources)> {
    let part = |set: &dyn Fn(&mut LinuxResources)| {
        let mut part = LinuxResources::default();
        set(&mut part);
        part
    };
    let cpu = resources.cpu().clone().unwrap_or_default();
    let (mut numbers, mut time) = (LinuxCpu::default(), cpu.clone());
    numbers.set_cpus(cpu.cpus().clone()).set_mems(cpu.mems().clone());
    time.set_cpus(None).set_mems(None);
    let some = |cpu: LinuxCpu| Some(cpu).filter(|cpu| *cpu != LinuxCpu::default());
    let mut parts = vec![
        (
            "memory",
            part(&|part| {
                part.set_memory(*resources.memory());
            }),
        ),
        (
            "cpu",
            part(&|part| {
                part.set_cpu(some(time.clone()));
            }),
        ),
        (
            "cpu.cpus or cpu.mems",
            part(&|part| {
                part.set_cpu(some(numbers.clone()));
            }),
        ),
        (
            "blockIO",
            part(&|part| {
                part.set_block_io(resources.block_io().clone());
            }),
        ),
        (
            "unified",
            part(&|part| {
                part.set_unified(resources.unified().clone());
            }),
        ),
    ];
    parts.retain(|(_, part)| *part != LinuxResources::default());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str) -> Option<LinuxResources> {
        for_systemd(&serde_json::from_str(json).unwrap(), "50000 80000\n")
    }

    fn cpu(json: &str) -> (Option<u64>, Option<i64>, Option<u64>) {
        let cpu = told(json).unwrap().cpu().clone().unwrap();
        (cpu.shares(), cpu.quota(), cpu.period())
    }

    #[test]
    fn systemd_keeps_the_cpu_time_that_a_part_leaves_out() {
        assert_eq!(cpu(r#"{"cpu": {"shares": 9}}"#), (Some(9), Some(50000), Some(80000)));
        assert_eq!(cpu(r#"{"cpu": {"period": 100000}}"#), (None, Some(50000), Some(100_000)));
        assert_eq!(cpu(r#"{"cpu": {"quota": -1}}"#), (None, Some(-1), Some(80000)));
        assert_eq!(cpu(r#"{"unified": {"cpu.max": "max 7"}}"#), (None, Some(-1), Some(7)));
    }

    #[test]
    fn systemd_is_not_told_what_it_has_no_property_for() {
        assert_eq!(
            told(r#"{"unified": {"io.max": "8:0 rbps=1", "cpu.weight": "7", "cpuset.cpus": "0"}}"#),
            None
        );
        assert_eq!(told(r#"{"cpu": {"cpus": "0-1", "mems": "0"}}"#), None);
        let memory = r#"{"memory": {"limit": 5}}"#;
        assert_eq!(told(memory).unwrap(), serde_json::from_str(memory).unwrap());
    }

    #[test]
    fn swap_is_forbidden_by_a_sum_that_is_memory_alone() {
        let forbids = |json: &str| forbids_swap(&serde_json::from_str(json).unwrap());
        assert!(forbids(r#"{"limit": 5, "swap": 5}"#));
        for other in [r#"{"limit": 5, "swap": 6}"#, r#"{"limit": 5}"#, r#"{"limit": -1, "swap": -1}"#] {
            assert!(!forbids(other), "{other}");
        }
    }
}
