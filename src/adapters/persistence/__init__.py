"""SQLAlchemy Core on SQLite: tables, the writer thread, the stores, migrations."""
