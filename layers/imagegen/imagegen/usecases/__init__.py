"""What the service does, one verb a module. Imports ports and domain; no boto3, no urllib3, no Powertools."""
