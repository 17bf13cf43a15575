"""Images from folders, Parquet files and the Hub, for whatever measures, evaluates or trains."""
