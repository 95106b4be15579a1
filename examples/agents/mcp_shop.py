"""The MCP server of ``mcp_tool.py``, which knows nothing of this project."""

from mcp.server import MCPServer
from shop import look_up

server = MCPServer("shop")
server.tool()(look_up)

if __name__ == "__main__":
    server.run()
