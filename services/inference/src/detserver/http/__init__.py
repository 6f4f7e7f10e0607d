"""HTTP: routes, what stands behind them, the shapes of the answers, and what is let in."""
