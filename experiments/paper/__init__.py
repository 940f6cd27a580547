"""The papers' tables and figures beside ours: specs, the runs behind them, agreement, and how they are written."""
