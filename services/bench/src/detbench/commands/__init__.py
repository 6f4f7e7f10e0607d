"""The subcommands of `detbench`: each module has NAME, SUMMARY, DESCRIPTION, configure(parser) and execute(options)."""
