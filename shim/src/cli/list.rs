//! `list`: all containers.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Global, Outcome, other, print};
use crate::container::State;
use crate::container::lookup::list;
use crate::container::state::StateError;
use pouch_errors::chain;

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// A table.
    Table,
    /// JSON.
    Json,
}

#[derive(Args)]
pub struct List {
    /// Output format.
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Print only IDs.
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    pub fn run(&self, global: &Global) -> Outcome {
        let mut states = Vec::new();
        for dir in list(&global.root).map_err(other)? {
            match dir.load() {
                Ok(state) => states.push(state),
                // Being created or deleted.
                Err(StateError::NotFound(_)) => {}
                // One that is damaged must not hide the others.
                Err(error) => global.log().error(&chain(&error)),
            }
        }
        let text = match (self.quiet, self.format) {
            (true, _) => states.iter().map(|state| format!("{}\n", state.id)).collect(),
            (false, Format::Json) => {
                let all: Vec<Value> = states.iter().map(State::to_oci).collect();
                format!("{}\n", Value::Array(all))
            }
            (false, Format::Table) => table(&states),
        };
        print(&text);
        Ok(0)
    }
}

fn table(states: &[State]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec()];
    for state in states {
        let json = state.to_oci();
        rows.push(vec![
            state.id.clone(),
            json["pid"].to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]);
    }
    align_rows(&rows)
}

/// Aligns columns, at least 12 characters wide as in runc's output.
pub fn align_rows(rows: &[Vec<String>]) -> String {
    const LEAST: usize = 12;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(LEAST - 3) + 3
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_begin_below_each_other() {
        let rows = [["ID", "PID"], ["a-rather-long-name", "7"]].map(|row| row.map(str::to_owned).to_vec());
        let text = align_rows(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("PID"), lines[1].find('7'));
    }
}
