//! `list`: everything registered, with options and defaults.

use anyhow::Result;
use circuit_framework::experiment::Registered;
use circuit_framework::registry::{self, Kind, Plugin};
use circuit_framework::{
    Architecture, MeasuringMetric, ParamSelector, PatchingMetric, Task, inventory,
};
use clap::{Arg, ArgMatches, Command};

const KINDS: [&str; 5] = ["models", "tasks", "metrics", "selectors", "experiments"];

pub(crate) fn command() -> Command {
    Command::new("list").about("Everything registered, with options and defaults").arg(
        Arg::new("kind")
            .value_name("KIND")
            .value_parser(KINDS)
            .help("Only what is registered of one kind"),
    )
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let wanted = matches.get_one::<String>("kind");
    for kind in KINDS.into_iter().filter(|kind| wanted.is_none_or(|wanted| wanted == kind)) {
        match kind {
            "models" => print_plugins::<dyn Architecture>("Model architectures", "model")?,
            "tasks" => print_plugins::<dyn Task>("Tasks", "task")?,
            "metrics" => {
                print_plugins::<dyn PatchingMetric>("Metrics", "metric")?;
                print_plugins::<dyn MeasuringMetric>("Metrics that only measure", "measure")?;
            }
            "selectors" => print_plugins::<dyn ParamSelector>("Selectors", "selector")?,
            _ => print_experiments()?,
        }
    }
    Ok(())
}

fn print_experiments() -> Result<()> {
    println!("Experiments, for `run NAME`");
    for experiment in Registered::all()? {
        let table: toml::Table = toml::from_str(experiment.toml)?;
        let description = table.get("description").and_then(|value| value.as_str());
        println!("  {:22}{}", experiment.name, description.unwrap_or_default());
    }
    Ok(())
}

fn print_plugins<T: Kind + ?Sized>(title: &str, section: &str) -> Result<()>
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
