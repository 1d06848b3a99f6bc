"""The operations of the service, one module each. Imports ports and domain; no boto3, urllib3 or Powertools."""
