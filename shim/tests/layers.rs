//! The layers of the crate: a module imports only modules of its own layer, and of those below it.

#![allow(clippy::unwrap_used)] // a test says by a panic what is missing

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate, from the lowest layer to the highest. Those of one line do not import each other.
const LAYERS: [&[&str]; 8] = [
    &["failure", "heap", "install", "logging"],
    &["config"],
    &["streams"],
    &["cgroup", "network"],
    &["sandbox"],
    &["container"],
    &["host"],
    &["cli", "task"],
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names that follow `crate::` in a source file, but for comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let names = code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    names.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn no_module_imports_one_of_a_layer_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = LAYERS.iter().enumerate();
    let layers: BTreeMap<&str, usize> =
        layers.flat_map(|(layer, names)| names.iter().map(move |name| (*name, layer))).collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "{files:?}");
    let mut upwards = Vec::new();
    for file in files {
        let below = file.strip_prefix(&root).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if ["lib", "bin"].contains(&module) {
            continue;
        }
        let own = layers.get(module).unwrap_or_else(|| panic!("{module} belongs to no layer"));
        for name in imports(&fs::read_to_string(&file).unwrap()) {
            // Others are constants and macros of the crate itself.
            if let Some(other) = layers.get(name.as_str())
                && name != module
                && other >= own
            {
                upwards.push(format!("{} imports {name}", below.display()));
            }
        }
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
}

#[test]
fn a_sandbox_knows_no_specification() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root.join("sandbox"), &mut files);
    sources(&root.join("network"), &mut files);
    sources(&root.join("streams"), &mut files);
    for file in files {
        assert!(!fs::read_to_string(&file).unwrap().contains("oci_spec::"), "{}", file.display());
    }
}
