"""An actor that makes a report over a folder in one long turn of steps, and a demonstration that kills its workers."""
