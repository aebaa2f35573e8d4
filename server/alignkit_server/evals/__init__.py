"""Evals in the form of OpenAI's API: rows, graders, and durable runs that sample and grade."""
