//! `list`: everything registered, with options and defaults.

use anyhow::Result;
use circuit_framework::registry::{self, Plugin};
use circuit_framework::{
    Architecture, ParamSelector, PatchingMetric, ReportMetric, Task, inventory,
};
use clap::{ArgMatches, Command};

use crate::experiments::SHIPPED;

pub(crate) fn command() -> Command {
    Command::new("list").about("Everything registered, with options and defaults")
}

pub(crate) fn run(_: &ArgMatches) -> Result<()> {
    print_plugins::<dyn Architecture>("Model architectures", "model")?;
    print_plugins::<dyn Task>("Tasks", "task")?;
    print_plugins::<dyn PatchingMetric>("Metrics", "metric")?;
    print_plugins::<dyn ReportMetric>("Metrics that only report", "report")?;
    print_plugins::<dyn ParamSelector>("Selectors", "selector")?;
    println!("Experiments, for `run NAME`");
    for (name, text) in SHIPPED {
        let table: toml::Table = toml::from_str(text)?;
        let description = table.get("description").and_then(|value| value.as_str());
        println!("  {name:22}{}", description.unwrap_or_default());
    }
    Ok(())
}

fn print_plugins<T: ?Sized>(title: &str, section: &str) -> Result<()>
where
    Plugin<T>: inventory::Collect,
{
    println!("{title}");
    for plugin in registry::all::<T>()? {
        println!("  {:22}{}", plugin.name, plugin.summary);
        for option in plugin.options() {
            let default = match &option.default {
                serde_json::Value::Null => "none".to_owned(),
                value => value.to_string(),
            };
            println!("    {section}.{} = {default}", option.name);
            println!("        {}", option.description);
        }
    }
    println!();
    Ok(())
}
